"""Trained policies as files: weights in safetensors, everything else in JSON that names components by registry key.

A snapshot may come from a stranger. Nothing in it is unpickled or imported, and what does not fit is refused.
"""

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from seggym.agents.algorithms.masked_dqn import MASK
from seggym.agents.algorithms.networks import find_algorithm, policy_kwargs
from seggym.agents.algorithms.scores import ACTOR_CRITICS, action_scores, best_legal
from seggym.agents.selection_training import encoder_hash, patients_of
from seggym.configs.checking import require_types
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.settings import NETWORK_OBSERVATIONS, KSpaceSettings
from seggym.envs.kspace.volumes.environment import space_of
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.environment import observation_space
from seggym.envs.selection.settings import SelectionSettings
from seggym.errors import SeggymError
from seggym.files import json_bytes, read_json, write_together
from seggym.reward_models.checkpoints import open_reward_model

WEIGHTS = "policy.safetensors"
CARD = "policy.json"
FORMAT = 2
_PACKAGES = ("seggym", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")
_CARD_TYPES = {
    "format": int, "algorithm": str, "network": dict, "observation": dict, "num_actions": int, "num_lines": int | None,
    "num_classes": int, "env_id": str, "env_kwargs": dict, "cohort": str, "patients": list, "data_fingerprint": str,
    "reward_model_hash": str | None, "seed": int, "steps": int, "metrics": dict, "versions": dict, "weights": str,
}  # fmt: skip


def save_snapshot(folder: str | os.PathLike[str], model: BaseAlgorithm, metadata: Mapping[str, Any]) -> Path:
    """Write the policy of ``model`` to ``folder``, both files or neither; returns the folder.

    ``metadata``: ``algorithm``, ``network``, ``env_id``, ``env_kwargs``, ``num_lines`` (None where there are none),
    ``num_classes``, ``reward_model_hash``, ``cohort``, ``patients`` (trained on), ``data_fingerprint``, ``seed`` and
    ``metrics``.
    """
    folder = Path(folder)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.policy.state_dict().items()}
    content = safetensors.torch.save(state)
    assert isinstance(model.observation_space, spaces.Dict)
    assert isinstance(model.action_space, spaces.Discrete)
    card = {
        **metadata,
        "format": FORMAT,
        "observation": {name: _describe(space) for name, space in model.observation_space.spaces.items()},
        "num_actions": int(model.action_space.n),
        "steps": int(model.num_timesteps),
        "versions": {package: _version(package) for package in _PACKAGES},
        "weights": hashlib.sha256(content).hexdigest()[:16],
    }
    write_together({folder / WEIGHTS: content, folder / CARD: json_bytes(card)})
    return folder


class LearnedPolicy:
    """A trained policy without its trainer; deterministic where it is evaluated.

    ``card`` is the content of ``policy.json``; ``observation`` names the parts that an environment must show,
    ``env_id`` and ``env_kwargs`` make the one it was trained in, ``identity`` tells it from another of its name.
    Evaluation never chooses an illegal action, whatever the algorithm: a scanner does not measure a line twice.
    """

    privileged = False
    anytime = False  # it sees the budget that is left

    def __init__(self, name: str, policy: BasePolicy, card: dict[str, Any]) -> None:
        self.name, self.policy, self.card = name, policy, card
        self.observation = tuple(card["observation"])
        self.env_id: str = card["env_id"]
        self.env_kwargs: dict[str, Any] = card["env_kwargs"]
        self.identity = {"weights": card["weights"]}

    def begin(self, engine: KSpaceEngine | SelectionEngine) -> None:
        """Raise :class:`SeggymError` where ``engine`` is not the kind that this policy was trained on.

        So it does where ``engine`` holds a patient that the policy was trained on, or shows another network's view.
        """
        if isinstance(engine, SelectionEngine):
            self._begin_selection(engine)
            return
        found = {
            "num_lines": engine.num_lines,
            "num_classes": engine.stack.num_classes,
            "num_actions": engine.num_actions,
        }
        self._require_fit(found, space_of(engine))
        self._require_unseen(engine.settings, set(engine.stack.patients))
        self._require_reward_model(engine)

    def _begin_selection(self, engine: SelectionEngine) -> None:
        # The number of classes shows in the observation, unless class_slots makes it the same for all cohorts.
        self._require_fit({"num_lines": None, "num_actions": engine.num_actions}, observation_space(engine))
        self._require_unseen(engine.settings, set(patients_of(engine)[1]))
        found, expected = encoder_hash(engine.settings), self.card["reward_model_hash"]
        if "embeddings" in self.observation and found != expected:
            raise SeggymError(
                f"snapshot {self.name} observes embeddings of the encoder with the weights {expected}, but "
                f"encoder={engine.settings.encoder} has {found or 'none of its own'}: pass the encoder of its "
                "training, or train a policy without embeddings"
            )

    def _require_fit(self, found: Mapping[str, Any], space: spaces.Dict) -> None:
        """The sizes and the parts of the observation must be those of training."""
        assert isinstance(self.policy.observation_space, spaces.Dict)
        offered = space.spaces
        wrong = [
            f"{key}={value} instead of {self.card[key]}" for key, value in found.items() if value != self.card[key]
        ]
        for part, expected in self.policy.observation_space.spaces.items():
            if part not in offered:
                wrong += [] if part == MASK else [f"no observation part {part!r}"]
            elif offered[part].shape != expected.shape:
                wrong.append(f"{part} of shape {offered[part].shape} instead of {expected.shape}")
        if wrong:
            raise SeggymError(
                f"snapshot {self.name} was trained on {self.env_id} and does not fit this environment, which has "
                f"{'; '.join(wrong)}: use its environment and observation={list(self.observation)}, or train another"
            )

    def _require_unseen(self, settings: KSpaceSettings | SelectionSettings, patients: set[str]) -> None:
        """No patient is one of the training; names are a cohort's own, as with reward models."""
        trained = set(self.card["patients"]) if settings.cohort == self.card["cohort"] else set()
        seen = sorted(trained & patients)
        if seen:
            raise SeggymError(
                f"snapshot {self.name} was trained on {len(seen)} of the {len(patients)} patients of "
                f"cohort {settings.cohort} with role={settings.role} ({seen[0]} is one), expected "
                "patients that it never saw: choose role=test, or the split of its training"
            )

    def _require_reward_model(self, engine: KSpaceEngine) -> None:
        """What a network makes of an image means something to a policy only where it is the network of its training.

        A reward model is known by its ``full`` network: which of its cross-fitted ones answers depends on the patient.
        """
        seen = [part for part in self.observation if part in NETWORK_OBSERVATIONS]
        if not seen:
            return
        assert engine.settings.reward_model is not None  # the settings insist where a network is observed
        model = open_reward_model(engine.settings.reward_model)
        found, expected = model.cards["full"].weights, self.card["reward_model_hash"]
        if found != expected:
            raise SeggymError(
                f"snapshot {self.name} observes {', '.join(seen)} of the reward model whose full network has the "
                f"weights {expected}, but {model.full} has {found}: pass the reward model of its training "
                "(reward_model_dir= or reward_model=), or train a policy with this one"
            )

    def act(self, engine: Any, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """The best legal action for every episode: int64 (N,)."""
        seen = {part: legal if part == MASK else observation[part] for part in self.observation}
        return best_legal(self.policy, seen, legal)

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Any]:
        """As in stable-baselines3, for one observation or a batch; without masks nothing is forbidden."""
        seen = dict(observation)
        if MASK in self.observation and MASK not in seen and action_masks is not None:
            seen[MASK] = np.asarray(action_masks, np.int8)
        tensors, batched = self.policy.obs_to_tensor({part: seen[part] for part in self.observation})
        assert isinstance(tensors, dict)
        scores = action_scores(self.policy, tensors)
        if action_masks is not None:
            legal = torch.as_tensor(np.atleast_2d(action_masks), device=scores.device).bool()
            scores = scores.masked_fill(~legal, -torch.inf)
        if deterministic or not isinstance(self.policy, ACTOR_CRITICS):
            actions = scores.argmax(1)
        else:
            actions = torch.distributions.Categorical(logits=scores).sample()
        return (actions if batched else actions[0]).cpu().numpy(), state


def load_policy(folder: str | os.PathLike[str], device: str = "cpu") -> LearnedPolicy:
    """The policy in a run folder (its ``best/``) or in a snapshot folder itself.

    Raises :class:`SeggymError` where a file is missing, damaged, or names something that seggym does not know.
    """
    folder = snapshot_folder(folder)
    card = _read_card(folder / CARD)
    arguments = policy_kwargs(card["algorithm"], card["network"])
    observation = spaces.Dict({name: _space(folder / CARD, entry) for name, entry in card["observation"].items()})
    policy = find_algorithm(card["algorithm"]).policy(
        observation, spaces.Discrete(card["num_actions"]), lambda _: 0.0, **arguments
    )
    _load_weights(folder, policy, card["weights"])
    policy = policy.to(device)
    policy.set_training_mode(False)
    return LearnedPolicy(_name(folder), policy, card)


def snapshot_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder that holds the policy files: ``folder/best`` of a run, or ``folder`` itself."""
    folder = Path(folder).expanduser()
    for candidate in (folder / "best", folder):
        if (candidate / CARD).is_file():
            return candidate
    raise SeggymError(
        f"no snapshot at {folder}: expected {CARD} there or in its best/; give the folder of a run of train_asmr.sh"
    )


def snapshot_folders(pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Run folders named by one folder, a glob or a list of either; each must hold a snapshot, and none counts twice."""
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    folders: list[Path] = []
    for entry in patterns:
        text = os.path.expanduser(os.fspath(entry))
        found = sorted(glob.glob(text)) if glob.has_magic(text) and not Path(text).exists() else [text]
        folders += [Path(path) for path in found if len(found) == 1 or Path(path).is_dir()]
    if not folders:
        raise SeggymError(f"no folder matches {pattern}: expected run folders of train_asmr.sh")
    for folder in folders:
        snapshot_folder(folder)
    return list(dict.fromkeys(folders))


def _name(folder: Path) -> str:
    run = folder.resolve()
    run = run.parent if run.name in ("best", "last") else run
    return "/".join(run.parts[-2:])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        from seggym import __version__

        return __version__


def _read_card(path: Path) -> dict[str, Any]:
    card = read_json(path, "snapshot")
    if not isinstance(card, dict):
        raise SeggymError(f"snapshot {path} holds a {type(card).__name__}, expected an object: train the policy again")
    if "_target_" in path.read_text():
        raise SeggymError(f"snapshot {path} has a _target_, expected registry keys only: do not use this file")
    if card.get("format") != FORMAT or set(card) != set(_CARD_TYPES):
        different = sorted(set(card) ^ set(_CARD_TYPES)) or [f"format {card.get('format')!r}"]
        raise SeggymError(
            f"snapshot {path} is not one of seggym's (format {FORMAT}): {', '.join(different)} missing or unexpected; "
            "train the policy again"
        )
    require_types(card, _CARD_TYPES, f"snapshot {path}: ")
    if not all(isinstance(patient, str) for patient in card["patients"]):
        raise SeggymError(f"snapshot {path}: patients must be names, found others: train the policy again")
    return card


def _load_weights(folder: Path, policy: BasePolicy, expected_hash: str) -> None:
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
        state = safetensors.torch.load(content)
    except (OSError, SafetensorError) as error:
        raise SeggymError(f"cannot read {path} ({error}): copy the snapshot or train the policy again") from None
    expected = policy.state_dict()
    wrong = sorted(set(state) ^ set(expected)) or [key for key in expected if state[key].shape != expected[key].shape]
    if wrong:
        raise SeggymError(
            f"{path} does not fit {folder / CARD}: {len(wrong)} tensors differ, the first is {wrong[0]}; copy the "
            "snapshot or train the policy again"
        )
    if hashlib.sha256(content).hexdigest()[:16] != expected_hash:
        raise SeggymError(f"{path} is not the file that {folder / CARD} describes: copy the snapshot again")
    policy.load_state_dict(state)


def _describe(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "binary", "shape": list(space.shape)}
    assert isinstance(space, spaces.Box)
    low, high = (float(value) if np.isfinite(value) else None for value in (space.low.min(), space.high.max()))
    return {"kind": "box", "shape": list(space.shape), "dtype": space.dtype.name, "low": low, "high": high}


def _space(path: Path, entry: Any) -> spaces.Space:
    try:
        if entry["kind"] == "binary":
            return spaces.MultiBinary(entry["shape"][0] if len(entry["shape"]) == 1 else entry["shape"])
        if entry["kind"] == "box" and entry["dtype"] in ("uint8", "float32"):
            low = -np.inf if entry["low"] is None else entry["low"]
            high = np.inf if entry["high"] is None else entry["high"]
            return spaces.Box(low, high, tuple(entry["shape"]), np.dtype(entry["dtype"]).type)
    except (KeyError, TypeError, IndexError, ValueError):
        pass
    raise SeggymError(f"snapshot {path} describes an observation part that is unknown: {entry}; train the policy again")
