"""Proximal policy optimisation with a ratio, an advantage and a value for every pixel (RL4Seg, MICCAI 2024).

``PPO.train`` of stable-baselines3 works element by element, and a rollout buffer hands it flat arrays: with a policy, a
buffer and a wrapper for maps it is per-pixel PPO as it stands. What is added here is what it has one of and two
networks need two of (learning rate, gradient norm), the divergence from a frozen reference, and schedules.
"""

import copy
import math
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor, nn

from seggym.agents.pixel.dense_policy import DensePolicy, PixelCategorical
from seggym.agents.pixel.pixel_buffer import PixelRolloutBuffer
from seggym.errors import SeggymError


class PixelPPO(PPO):
    """PPO on label maps, with :class:`DensePolicy`, in environments wrapped in ``RewardMapVecEnv``.

    ``learning_rate`` is the actor's, ``critic_rate`` the critic's; each may be a schedule of the remaining progress (1
    to 0), as ``entropy`` and ``beta`` may. ``max_grad_norm`` is the actor's, ``critic_grad_norm`` the critic's.
    ``reference`` (a segmentation network; a frozen copy in evaluation mode is kept) is what the policy is held to, with
    weight ``beta``: the reward of a pixel is r - beta (log pi(a) - log pi_ref(a)). ``n_steps`` is 1 by default: a
    rollout is one image from each environment; ``batch_size`` images make a minibatch (None: the whole rollout).
    Everything else is PPO's.

    :meth:`save` keeps the reference too. Raises :class:`SeggymError` for a ``beta`` without a reference.
    """

    policy: DensePolicy
    rollout_buffer: PixelRolloutBuffer

    def __init__(
        self,
        policy: type[DensePolicy] = DensePolicy,
        env: Any = None,
        learning_rate: float | Schedule = 5e-4,
        critic_rate: float | Schedule = 5e-4,
        n_steps: int = 1,
        batch_size: int | None = None,
        n_epochs: int = 5,
        clip_range: float | Schedule = 0.2,
        normalize_advantage: bool = False,
        entropy: float | Schedule = 0.0,
        beta: float | Schedule = 0.0,
        max_grad_norm: float = 0.5,
        critic_grad_norm: float = 0.5,
        reference: nn.Module | None = None,
        baseline: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.critic_rate, self.entropy, self.beta = critic_rate, entropy, beta
        self.has_reference = reference is not None
        self.reference = frozen(reference)
        norms = {"actor_grad_norm": max_grad_norm, "critic_grad_norm": critic_grad_norm}
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size or _rollout(n_steps, env),
            n_epochs=n_epochs,
            clip_range=clip_range,
            normalize_advantage=normalize_advantage,
            # The networks share nothing, so the weight of the critic's loss is its learning rate's business.
            vf_coef=1.0,
            # The optimizer clips each network by itself.
            max_grad_norm=math.inf,
            gamma=1.0,
            gae_lambda=1.0,
            rollout_buffer_class=PixelRolloutBuffer,
            rollout_buffer_kwargs={"baseline": baseline},
            policy_kwargs={**norms, **(policy_kwargs or {})},
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    def _setup_model(self) -> None:
        for name in ("critic_rate", "entropy", "beta"):
            setattr(self, name, FloatSchedule(getattr(self, name)))
        if not self.has_reference and any(self._schedule("beta", progress) for progress in (1.0, 0.5, 0.0)):
            raise SeggymError(
                "beta is above 0 and there is no reference: pass the supervised network that the policy is held to"
            )
        super()._setup_model()
        if self.has_reference:
            # A model that is being loaded has none yet: one of the actor's kind takes the saved weights.
            self.reference = (frozen(self.policy.actor) if self.reference is None else self.reference).to(self.device)
            self.rollout_buffer.reference = self._reference_log_prob

    def _schedule(self, name: str, progress: float) -> float:
        return float(getattr(self, name)(progress))

    def _reference_log_prob(self, images: Tensor, actions: Tensor) -> Tensor:
        return PixelCategorical().proba_distribution(self.reference(images)[0]).log_prob(actions)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As stable-baselines3's, with the divergence weighted as the schedule says."""
        self.rollout_buffer.beta = self._schedule("beta", self._current_progress_remaining)
        return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """As stable-baselines3's, with the entropy weighted as the schedule says."""
        self.ent_coef = self._schedule("entropy", self._current_progress_remaining)
        # Sums of rewards and values are in the buffer, which is flattened from here on.
        self.logger.record("rollout/reward_map", float(self.rollout_buffer.rewards.mean()))
        if self.has_reference:
            self.logger.record("rollout/divergence", self.rollout_buffer.divergence)
        super().train()
        self.logger.record("train/entropy_weight", self.ent_coef)
        self.logger.record("train/beta", self.rollout_buffer.beta)

    def _update_learning_rate(self, optimizers: Any) -> None:
        progress = self._current_progress_remaining
        rates = (float(self.lr_schedule(progress)), self._schedule("critic_rate", progress))
        for group, rate, name in zip(self.policy.optimizer.param_groups, rates, ("actor", "critic"), strict=True):
            group["lr"] = rate
            self.logger.record(f"train/{name}_rate", rate)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, *(["reference"] if self.has_reference else [])], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference"]


def frozen(network: nn.Module | None) -> Any:
    """A copy of ``network`` in evaluation mode without gradients; None stays None."""
    return None if network is None else copy.deepcopy(network).eval().requires_grad_(False)


class PixelReinforce(PixelPPO):
    """REINFORCE (Williams, 1992) with one gradient step per rollout: -(r - mean) / std * log pi(a), pixel by pixel.

    The ratio of PPO is 1 in the first step on a rollout, and its gradient then is that of log pi: one epoch over the
    whole rollout in one batch, with rewards in place of advantages and no critic, is REINFORCE.
    """

    def __init__(self, policy: type[DensePolicy] = DensePolicy, env: Any = None, **kwargs: Any) -> None:
        whole = {"n_epochs": 1, "batch_size": None, "normalize_advantage": True, "baseline": False}
        super().__init__(policy, env, **{**kwargs, **whole})
        # The critic has nothing to learn for.
        self.vf_coef = 0.0


def _rollout(n_steps: int, env: Any) -> int:
    """Images in a rollout; load() makes a model without environments, and fills in what was saved."""
    return max(2, n_steps * getattr(env, "num_envs", 1))
