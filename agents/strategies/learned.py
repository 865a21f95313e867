"""Strategies that train a small network of their own on the pool: CoreCLR, CoreGCN, VAAL."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seggym.agents.strategies.caching import cached_features
from seggym.agents.strategies.coverage import k_center_greedy, require_features
from seggym.agents.strategies.strategy import Query, Strategy, choose_best, draw_seed, seeded, uniform
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError
from seggym.reward_models.contrastive import GroupContrast, group_contrastive_features


@dataclass(frozen=True)
class CoreCLR(GroupContrast, Strategy):
    """Greedy k-center on group-contrastive features (Vepa et al., NeurIPS 2024, arXiv:2411.15763, section 3).

    The options are those of :class:`~seggym.reward_models.contrastive.GroupContrast`. The encoder belongs to the pool
    and to ``seed``, not to the round or the episode: it is trained at the first query, its features are kept on disk.
    ``steps=0`` gives features of an untrained encoder, ``groups=[]`` with ``weights=[]`` those of plain NT-Xent. The
    released code differs: its mask of positives starts from ones and so makes every view a positive, and its encoder is
    a ResNet trained on natural images.
    """

    name: ClassVar[str] = "coreclr"

    def pool_features(self, state: SelectionState) -> Tensor:
        """The features of every sample, float32 (P, ``features``)."""
        samples = state.samples
        images = state.images(np.arange(len(samples)))
        groups = (samples.patient, samples.volume, samples.slice_index)
        what = {"encoder": self.name, "version": 1, "device": images.device.type, **asdict(self)}
        return cached_features(
            what,
            [images, *groups],
            lambda: group_contrastive_features(images, *groups, GroupContrast(**asdict(self))),
        )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        features = self.pool_features(state).double().numpy()
        return k_center_greedy(features, state.labelled, candidates, n, generator)


@dataclass(frozen=True)
class CoreGCN(Strategy):
    """Greedy k-center on what a graph network learns by telling labelled from unlabelled.

    Caramalau et al., "Sequential Graph Convolutional Network for Active Learning", CVPR 2021, section 3. The nodes are
    all samples with ``features`` of unit length, the graph is A = D^-1 (S + I) of their cosine similarities S (those
    below 0 count as 0). Two graph convolutions, ``hidden`` units with dropout and then a sigmoid f, minimise -mean ln f
    over the labelled minus ``balance`` times mean ln(1 - f) over the others; the hidden layer is the space of the
    k-center. While nothing is labelled the choice is random.
    """

    features: str = "learner"
    hidden: int = 128
    dropout: float = 0.3
    epochs: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    balance: float = 1.2

    name: ClassVar[str] = "coregcn"

    def __post_init__(self) -> None:
        if self.features not in ("learner", "embeddings"):
            require_features(self.name, "")
        if min(self.hidden, self.epochs) < 1 or not 0 <= self.dropout < 1 or self.learning_rate <= 0:
            raise SeggymError(
                f"hidden={self.hidden}, epochs={self.epochs}, dropout={self.dropout}, learning_rate="
                f"{self.learning_rate} of {self.name}, expected at least 1 twice, a share below 1 and a rate above 0; "
                "mend them"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        if not len(state.labelled):
            return choose_best(uniform(generator, len(candidates)), candidates, n, generator)
        everything = np.arange(len(state.samples))
        nodes = state.embeddings() if self.features == "embeddings" else state.learner_features(everything)
        hidden = self._hidden(nodes.float(), torch.from_numpy(state.labelled), draw_seed(generator))
        return k_center_greedy(hidden.double().cpu().numpy(), state.labelled, candidates, n, generator)

    def _hidden(self, nodes: Tensor, labelled: Tensor, seed: int) -> Tensor:
        """Activations (P, hidden) of the trained network; ``nodes`` (P, F)."""
        with seeded(seed, nodes.device):
            unit = F.normalize(nodes, dim=1)
            graph = (unit @ unit.T).clamp(min=0) + torch.eye(len(unit), device=unit.device)
            graph = graph / graph.sum(1, keepdim=True)
            spread = graph @ unit  # (A X) W costs less than A (X W), and A X is the same in every epoch
            known = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
            known[labelled.to(unit.device)] = True
            first = nn.Linear(unit.shape[1], self.hidden).to(unit.device)
            second = nn.Linear(self.hidden, 1).to(unit.device)
            parameters = [*first.parameters(), *second.parameters()]
            optimiser = torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay)
            for _ in range(self.epochs):
                logits = graph @ second(F.dropout(first(spread).relu(), self.dropout))[:, 0]
                loss = F.softplus(-logits[known]).mean()
                if not known.all():
                    loss = loss + self.balance * F.softplus(logits[~known]).mean()
                _step(optimiser, loss)
        with torch.no_grad():
            return first(spread).relu()


@dataclass(frozen=True)
class VAAL(Strategy):
    """What a discriminator is surest is unlabelled, in the latent space of a VAE that tries to fool it.

    Variational adversarial active learning (Sinha et al., ICCV 2019): the VAE minimises reconstruction error and beta
    times the KL divergence of labelled and of unlabelled images (eq. 1) and calls both labelled (eq. 2); the
    discriminator tells them apart (eq. 4). A utility is the discriminator's probability of "unlabelled" (Alg. 2).
    Images are reduced to ``size`` x ``size``; ``steps`` are steps of the VAE and of the discriminator, a batch of each
    kind of image in each. The networks are small and trained anew for every query. While nothing is labelled the
    choice is random.
    """

    steps: int = 200
    batch: int = 32
    size: int = 32
    latent: int = 32
    beta: float = 1.0
    adversary: float = 1.0
    learning_rate: float = 5e-4

    name: ClassVar[str] = "vaal"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.latent) < 1 or self.size < 8 or self.size % 8 or self.learning_rate <= 0:
            raise SeggymError(
                f"steps={self.steps}, batch={self.batch}, latent={self.latent}, size={self.size}, learning_rate="
                f"{self.learning_rate} of {self.name}, expected at least 1 thrice, a multiple of 8 and a rate above 0; "
                "mend them"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        everything = np.arange(len(state.samples))
        labelled = state.labelled
        unlabelled = np.setdiff1d(everything, labelled)
        if not len(labelled):
            return choose_best(uniform(generator, len(candidates)), candidates, n, generator)
        images = state.images(everything)
        with seeded(draw_seed(generator), images.device):
            images = F.adaptive_avg_pool2d(images, self.size)
            encoder, discriminator = self._train(images, labelled, unlabelled)
        with torch.no_grad():
            mean = encoder(images[candidates]).chunk(2, 1)[0]
            utilities = torch.sigmoid(-discriminator(mean)[:, 0])
        return choose_best(utilities.double().cpu().numpy(), candidates, n, generator)

    def _train(self, images: Tensor, labelled: np.ndarray, unlabelled: np.ndarray) -> tuple[nn.Module, nn.Module]:
        encoder, decoder, discriminator = (net.to(images.device) for net in self._networks(images.shape[1]))
        vae = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], self.learning_rate)
        judge = torch.optim.Adam(discriminator.parameters(), self.learning_rate)
        kinds = [torch.from_numpy(kind).to(images.device) for kind in (labelled, unlabelled)]
        for _ in range(self.steps):
            pair = [images[kind[torch.randint(len(kind), (self.batch,)).to(images.device)]] for kind in kinds]
            loss: Tensor = torch.zeros((), device=images.device)
            for batch in pair:
                mean, log_variance = encoder(batch).chunk(2, 1)
                restored = decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp())
                divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
                loss = loss + (restored - batch).square().sum((1, 2, 3)).mean() + self.beta * divergence
                loss = loss + self.adversary * F.softplus(-discriminator(mean)).mean()
            _step(vae, loss)
            with torch.no_grad():
                means = [encoder(batch).chunk(2, 1)[0] for batch in pair]
            _step(judge, F.softplus(-discriminator(means[0])).mean() + F.softplus(discriminator(means[1])).mean())
        return encoder, discriminator

    def _networks(self, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Encoder to mean and log variance, decoder, discriminator (positive: labelled)."""
        small = self.size // 8
        encoder = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * small**2, 2 * self.latent)),
        )
        decoder = nn.Sequential(
            *(nn.Linear(self.latent, 64 * small**2), nn.Unflatten(1, (64, small, small)), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 2, 2), nn.ReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU()),
            nn.ConvTranspose2d(16, channels, 2, 2),
        )
        discriminator = nn.Sequential(
            nn.Linear(self.latent, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        return encoder, decoder, discriminator


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
