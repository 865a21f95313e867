"""The environments of label maps: spaces, rewards, what a batch and a single one have in common, and bad input."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from torch import Tensor

from seggym.cohorts import acdc, camus
from seggym.envs import ENVIRONMENTS
from seggym.envs.adaptation import sources
from seggym.envs.adaptation.engine import AdaptationEngine, Episodes
from seggym.envs.adaptation.environment import AdaptationEnv, AdaptationVectorEnv
from seggym.envs.adaptation.rewards import OracleReward
from seggym.errors import SeggymError
from seggym.reward_models.error_net import ErrorNet

IDS = [name for name in ENVIRONMENTS if name.startswith("SegAdapt")]
PHANTOM: dict[str, Any] = {"cohort_options": {"patients": 8, "size": 32}, "size": 32, "device": "cpu"}
CLASSES, SIZE = 3, 16


@pytest.fixture(scope="module")
def kwargs_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """id -> keyword arguments that make it without a download."""
    root = tmp_path_factory.mktemp("adaptation")
    data = {
        "camus": camus.write_example(root / "camus", patients=8),
        "acdc": acdc.write_example(root / "acdc", patients=8),
    }

    def make(name: str) -> dict[str, Any]:
        cohort = ENVIRONMENTS[name][2]["cohort"]
        return PHANTOM if cohort == "echo" else {"data_root": str(data[cohort]), "device": "cpu"}

    return make


def made_up(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 1, 16, 16) and labels uint8 (n, 16, 16); the last image has no class 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (count, SIZE, SIZE)).astype(np.uint8)
    labels[-1] = np.minimum(labels[-1], 1)
    images = labels / CLASSES + rng.random(labels.shape) / CLASSES
    return torch.tensor(images, dtype=torch.float32)[:, None], torch.from_numpy(labels)


def made_up_vector(count: int, reward: Any = "accuracy", **options: Any) -> AdaptationVectorEnv:
    images, truth = made_up()
    oracle = OracleReward(truth, CLASSES, reward) if isinstance(reward, str) else reward
    return AdaptationVectorEnv(count, engine=AdaptationEngine(images, oracle, CLASSES, count, truth), **options)


def brightness(images: Tensor, masks: Tensor) -> Tensor:
    """A reward that knows no label: of no meaning, but a function of every pixel."""
    return (images[:, 0] * (1 + masks) / CLASSES).double()


# --- the registered ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_nothing_to_warn_of(kwargs_of: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"seggym:{name}", render_mode="rgb_array", **kwargs_of(name))
        check_env(env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_made_both_ways(kwargs_of: Any, name: str) -> None:
    env = gymnasium.make(name, **kwargs_of(name))
    assert isinstance(env.unwrapped, AdaptationEnv)
    height, width = env.observation_space.shape[1:]  # type: ignore[index]
    expected = {"SegAdapt-CAMUS-v0": 128, "SegAdapt-ACDC-v0": 96, "SegAdapt-Phantom-v0": 32}[name]
    assert (height, width) == (expected, expected)
    assert env.action_space.nvec.tolist() == [4] * (height * width)  # type: ignore[attr-defined]
    envs = gymnasium.make_vec(name, num_envs=3, autoreset_mode="SameStep", **kwargs_of(name))
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    observation, reward, terminated, _, info = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observation)
    assert reward.dtype == np.float64
    assert terminated.all()
    assert info["final_info"]["reward_map"].shape == (3, height * width)


def test_the_defaults_of_v0() -> None:
    """They are promised: another default is another version."""
    settings = gymnasium.spec("SegAdapt-CAMUS-v0").kwargs
    assert settings == {"cohort": "camus", "size": 128, "source_frames": ["2CH"], "target_frames": ["4CH"]}
    engine = gymnasium.make("SegAdapt-Phantom-v0", **PHANTOM).unwrapped.engine  # type: ignore[attr-defined]
    assert isinstance(engine.reward, OracleReward)
    assert engine.reward.kind == "accuracy"
    other = gymnasium.make("SegAdapt-Phantom-v0", role="target_train", **PHANTOM).unwrapped.engine  # type: ignore[attr-defined]
    assert engine.names == other.names


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_mean_of_the_map() -> None:
    env = AdaptationEnv(engine=made_up_vector(1).engine)
    _, truth = made_up()
    _, info = env.reset(options={"episodes": [{"sample": 2, "key": 5}]})
    assert (info["sample"], info["key"]) == (2, 5)
    assert np.isnan(info["accuracy"])
    action = truth[2].numpy().reshape(-1).astype(np.int64)
    action[:64] = (action[:64] + 1) % CLASSES
    _, reward, terminated, truncated, info = env.step(action)
    expected = np.ones(SIZE * SIZE, np.float32)
    expected[:64] = 0
    np.testing.assert_array_equal(info["reward_map"], expected)
    assert reward == info["quality"] == info["reward_parts"]["adaptation"] == info["accuracy"] == 0.75
    assert (terminated, truncated) == (True, False)
    with pytest.raises(SeggymError, match="has ended"):
        env.step(action)


def test_the_dice_reward_and_the_reported_dice_by_hand() -> None:
    envs = made_up_vector(2, "dice")
    _, truth = made_up()
    envs.reset(options={"episodes": [{"sample": 0, "key": 0}, {"sample": 5, "key": 0}]})
    actions = np.random.default_rng(1).integers(0, CLASSES, (2, SIZE * SIZE))
    _, reward, _, _, info = envs.step(actions)
    for row, sample in enumerate((0, 5)):
        given, true = actions[row].reshape(SIZE, SIZE), truth[sample].numpy()
        smoothed, plain = [], []
        for label in (1, 2):
            shared, total = ((given == label) & (true == label)).sum(), (given == label).sum() + (true == label).sum()
            present = bool((true == label).any())
            plain.append(2 * shared / total if present else np.nan)
            smoothed += [(2 * shared + 1) / (total + 1)] if present else []
        np.testing.assert_allclose(info["dice"][row], plain, rtol=1e-6)
        np.testing.assert_allclose(reward[row], np.mean(smoothed), rtol=1e-6)
        np.testing.assert_allclose(info["reward_map"][row], reward[row], rtol=1e-6)
    assert np.isnan(info["dice"][1, 1])


def test_the_dice_reward_of_an_image_without_classes_is_its_share_of_background() -> None:
    empty = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    masks[0, :4] = 1
    assert OracleReward(empty, CLASSES, "dice").of(torch.tensor([0]), masks).unique().tolist() == [0.75]


# --- episodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["accuracy", "dice", brightness])
def test_a_batch_equals_single_environments_bit_for_bit(reward: Any) -> None:
    envs = made_up_vector(4, reward)
    batch, _ = envs.reset(seed=3)
    actions = np.random.default_rng(0).integers(0, CLASSES, (4, SIZE * SIZE))
    _, rewards, _, _, infos = envs.step(actions)
    for slot in range(4):
        env = AdaptationEnv(engine=made_up_vector(1, reward).engine)
        episode = {"sample": int(infos["sample"][slot]), "key": int(infos["key"][slot])}
        image, _ = env.reset(options={"episodes": [episode]})
        np.testing.assert_array_equal(image, batch[slot])
        _, value, _, _, info = env.step(actions[slot])
        assert value == rewards[slot]
        for name in ("reward_map", "accuracy", "dice", "quality"):
            np.testing.assert_array_equal(info[name], infos[name][slot])


def test_keys_decide_and_every_image_is_drawn() -> None:
    envs = made_up_vector(300)
    first, again, other = (envs.reset(seed=seed)[1]["sample"] for seed in (0, 0, 1000))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    counts = np.bincount(first, minlength=6)
    # 300 draws from 6: 50 each, with a standard deviation of 6.5.
    assert counts.min() > 20
    assert counts.max() < 80


def test_autoreset_both_ways() -> None:
    same = made_up_vector(2, autoreset_mode="SameStep")
    same.reset(seed=0)
    observation, _, _, _, info = same.step(np.zeros((2, SIZE * SIZE), int))
    assert (info["sample"] != info["final_info"]["sample"]).any() or (info["key"] != info["final_info"]["key"]).all()
    images, _ = made_up()
    for slot in range(2):
        np.testing.assert_array_equal(info["final_obs"][slot], images[info["final_info"]["sample"][slot]])
        np.testing.assert_array_equal(observation[slot], images[info["sample"][slot]])
    late = made_up_vector(2)
    assert late.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    late.reset(seed=0)
    assert late.step(np.zeros((2, SIZE * SIZE), int))[2].all()
    # The action of the step that resets is ignored.
    _, reward, terminated, _, info = late.step(np.ones((2, SIZE * SIZE), int))
    assert not terminated.any()
    assert (reward == 0).all()
    assert (info["reward_map"] == 0).all()


def test_observations_and_infos_are_fresh() -> None:
    envs = made_up_vector(2)
    observation, info = envs.reset(seed=0)
    kept, sample = observation.copy(), info["sample"].copy()
    observation[:], info["sample"][:] = -1, -1
    after, _, _, _, later = envs.step(np.zeros((2, SIZE * SIZE), int))
    np.testing.assert_array_equal(after, kept)
    np.testing.assert_array_equal(later["sample"], sample)


def test_a_run_goes_on_exactly() -> None:
    envs, other = made_up_vector(3), made_up_vector(3)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, CLASSES, (3, SIZE * SIZE)) for _ in range(4)]
    envs.step(actions[0])
    other.load_state_dict(envs.state_dict())
    for action in actions[1:]:
        (image, reward, *_), (image2, reward2, *_) = envs.step(action), other.step(action)
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(reward, reward2)
    with pytest.raises(SeggymError, match="same data, size and num_envs"):
        made_up_vector(2).load_state_dict(envs.state_dict())


# --- what is known of labels ------------------------------------------------------------------------------------------


def error_net(folder: Path, patients: list[str]) -> str:
    torch.manual_seed(0)
    net = ErrorNet(("background", "left ventricle", "myocardium", "left atrium"), widths=(4, 8), temperature=2.0)
    net.patients = tuple(patients)
    net.save(folder, size=32)
    return str(folder)


def test_the_learned_reward_needs_no_label_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "target_train_labels", lambda settings: pytest.fail("labels were asked for"))
    model = error_net(tmp_path / "net", [])
    learned = {**PHANTOM, "reward": "learned", "reward_model": model}
    env = gymnasium.make("SegAdapt-Phantom-v0", **learned)
    image, info = env.reset(seed=0)
    assert "dice" not in info
    action = env.action_space.sample()
    _, reward, _, _, info = env.step(action)
    assert "dice" not in info
    from seggym.reward_models.error_net import load_error_net

    expected = load_error_net(model)(torch.from_numpy(image)[None], torch.from_numpy(action).reshape(1, 32, 32))
    np.testing.assert_allclose(info["reward_map"], expected.flatten().numpy(), atol=1e-6)
    assert reward == pytest.approx(float(expected.mean()))
    # Where labels are known, metrics are reported beside the learned reward.
    val = gymnasium.make("SegAdapt-Phantom-v0", role="target_val", **learned)
    val.reset(seed=0)
    assert val.step(action)[4]["dice"].shape == (3,)


def test_an_error_net_that_saw_the_patients_does_not_score_them(tmp_path: Path) -> None:
    engine = gymnasium.make("SegAdapt-Phantom-v0", role="target_test", **PHANTOM).unwrapped.engine  # type: ignore[attr-defined]
    seen = engine.names[0].partition("_")[0]
    learned = {**PHANTOM, "reward": "learned", "reward_model": error_net(tmp_path / "net", [seen])}
    with pytest.raises(SeggymError, match=f"1 patients of target_test .{seen}"):
        gymnasium.make("SegAdapt-Phantom-v0", role="target_test", **learned)
    gymnasium.make("SegAdapt-Phantom-v0", role="target_train", **learned)
    with pytest.raises(SeggymError, match="knows 4 classes"):
        gymnasium.make("SegAdapt-Phantom-v0", **{**learned, "classes": ["left ventricle"]})


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_actions_and_episodes_are_one_sentence() -> None:
    envs = made_up_vector(1)
    with pytest.raises(SeggymError, match="call reset"):
        envs.step(np.zeros((1, SIZE * SIZE), int))
    envs.reset(seed=0)
    with pytest.raises(SeggymError, match="from 0 to 3, expected 0 to 2"):
        envs.step(np.full((1, SIZE * SIZE), 3) * (np.arange(SIZE * SIZE) == 7))
    with pytest.raises(SeggymError, match="sample and key"):
        envs.reset(options={"episodes": [{"sample": 0}]})
    with pytest.raises(SeggymError, match=r"outside 0\.\.5"):
        envs.reset(options={"episodes": [{"sample": 6, "key": 0}]})


def test_bad_engines_are_one_sentence() -> None:
    images, truth = made_up()
    oracle = OracleReward(truth, CLASSES)
    with pytest.raises(SeggymError, match="images have shape"):
        AdaptationEngine(images[:0], oracle, CLASSES, 1)
    with pytest.raises(SeggymError, match="truth has shape"):
        AdaptationEngine(images, oracle, CLASSES, 1, truth[:2])
    with pytest.raises(SeggymError, match="oracle's kind"):
        OracleReward(truth, CLASSES, "iou")
    engine = AdaptationEngine(images, lambda images, masks: masks.float().mean((1, 2)), CLASSES, 1)
    engine.begin(torch.tensor([0]), Episodes(torch.tensor([0]), torch.tensor([0])))
    with pytest.raises(SeggymError, match="the reward of"):
        engine.step(torch.zeros(1, SIZE * SIZE, dtype=torch.int64))
