"""The guard of ``precision="auto"``: what the choices in bf16 lose, the record of it, and who may trust it."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.kspace import orders, simulation
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import key_of
from seggym.reward_models import precision, regret
from seggym.reward_models.checkpoints import ModelCard, open_reward_model, save_network
from seggym.reward_models.frozen import FrozenNetwork, Prediction, load_frozen
from seggym.reward_models.networks import build_network
from seggym.reward_models.precision import PrecisionRecord, judge, read_record, resolve_precision, write_record
from seggym.reward_models.regret import Choices, compare_choices, record_precision, summarise

CPU = torch.device("cpu")
SCAN = Acquisition(matrix=24, crop=16)
RECORD = PrecisionRecord("", 96, 0.1, 0.0001, 0.1, 0.001, (0.0, 0.002), "cpu", "2.13")


def stack_of(slices: int) -> SliceStack:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(slices, SCAN.grid, SCAN.grid, generator=generator)
    labels = torch.zeros(slices, SCAN.crop, SCAN.crop, dtype=torch.uint8)
    labels[:, 4:12, 5:13] = 1
    ones = torch.ones(slices)
    patients = tuple(f"p{index // 2}" for index in range(slices))
    return SliceStack(
        images, labels, ones, ones, ones, 0 * ones, torch.ones(slices, 3), patients, patients, tuple(range(slices)), 2
    )


def save(folder: Path, task: str = "segmentation", seed: int = 0) -> ModelCard:
    torch.manual_seed(seed)
    names = ["background", "heart"] if task == "segmentation" else []
    outputs = 2 if names else 1
    card = ModelCard("unet", {"widths": [4, 6]}, outputs, names, task, SCAN.crop, ["p9"], "phantom", "0")
    return save_network(folder, build_network("unet", outputs, widths=[4, 6]), card)


def by_brightness(sign: float):
    """A stub that prefers bright (or dark) images, whatever they show: the foreground's probability is their mean."""

    def network(magnitude: torch.Tensor) -> Prediction:
        certain = (sign * magnitude.mean((1, 2))).sigmoid()[:, None, None].expand_as(magnitude)
        return Prediction(torch.stack([1 - certain, certain], 1), torch.zeros(len(magnitude), 2))

    return network


def test_the_same_network_twice_loses_nothing() -> None:
    choices = compare_choices(by_brightness(1.0), by_brightness(1.0), stack_of(3), SCAN)
    assert len(choices.changed) == 3 * len(regret.STAGES)
    assert not choices.changed.any()
    assert not choices.regret.any()
    assert choices.patients == ["p0"] * 8 + ["p1"] * 4


def test_another_choice_loses_what_the_reference_says_it_does() -> None:
    """The first choice of one scan, worked out from the definitions: masks, images, and the Dice of a constant map."""
    stack = stack_of(1)
    bright, dark = by_brightness(1.0), by_brightness(-1.0)
    choices = compare_choices(bright, dark, stack, SCAN)

    keys = torch.tensor([key_of(f"precision:{stack.names[0]}")])
    hybrid = simulation.encode(stack, torch.tensor([0]), keys, SCAN, torch.float32)
    hybrid = hybrid + simulation.thermal_noise(stack, torch.tensor([0]), keys, SCAN)

    def dice(network, lines: list[int]) -> float:
        mask = torch.zeros(1, SCAN.matrix, dtype=torch.bool)
        mask[0, lines] = True
        image = simulation.reconstruct(hybrid, mask, SCAN)[:, 0].abs()
        foreground = network(image).probabilities[0, 1].double()
        truth = stack.labels[0].double()
        return ((2 * (foreground * truth).sum() + 1) / (foreground.sum() + truth.sum() + 1)).item()

    start = orders.initial_block(SCAN.matrix, 3).tolist()
    free = [line for line in range(SCAN.matrix) if line not in start]
    exact = {line: dice(bright, [*start, line]) for line in free}
    chosen = max(free, key=lambda line: dice(dark, [*start, line]))
    assert choices.changed[0] == (chosen != max(exact, key=exact.get))
    assert choices.changed.any()
    assert choices.regret[0] == pytest.approx(max(exact.values()) - exact[chosen], abs=1e-6)
    assert choices.regret[0] > 1e-4
    assert choices.gain[0] == pytest.approx(max(exact.values()) - dice(bright, start), abs=1e-6)


def test_the_summary_by_hand() -> None:
    choices = Choices(
        np.array([True, False, False, False]),
        np.array([0.02, 0.0, 0.0, 0.0]),
        np.array([0.1, 0.3, 0.2, 0.4]),
        ["a", "a", "b", "b"],
    )
    record = summarise(choices, "hash", "cpu")
    assert (record.choices, record.changed, record.weights) == (4, 0.25, "hash")
    assert record.regret == pytest.approx(0.005)
    assert record.gain == pytest.approx(0.25)
    assert record.relative == pytest.approx(0.02)
    # Either patient alone is the extreme draw: 0.02 of 0.4, and nothing of 0.6.
    assert record.interval == pytest.approx((0.0, 0.05))
    alone = summarise(choices._replace(patients=["a"] * 4, gain=-choices.gain), "hash", "cpu")
    assert alone.relative is None
    assert alone.interval == (None, None)


def test_a_network_is_measured_into_its_folder(tmp_path: Path) -> None:
    card = save(tmp_path)
    record = record_precision(tmp_path, stack_of(2), SCAN, CPU)
    assert record is not None
    assert record.weights == card.weights
    assert record.choices == 2 * len(regret.STAGES)
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / "precision.json").read_text())["torch"] == torch.__version__


def test_what_would_take_too_long_is_not_measured(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path)
    monkeypatch.setattr(regret, "MAX_SECONDS", 0.0)
    assert record_precision(tmp_path, stack_of(2), SCAN, CPU) is None
    assert not (tmp_path / "precision.json").exists()


def test_a_record_of_other_weights_is_stale(tmp_path: Path) -> None:
    record = replace(RECORD, weights=save(tmp_path).weights)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    save(tmp_path, seed=1)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable JSON"),
        ("[]", "not a precision record"),
        ('{"weights": "x"}', "not a precision record"),
        (json.dumps({**asdict(RECORD), "relative": "small"}), "relative='small' is a str"),
        (json.dumps({**asdict(RECORD), "interval": [1.0]}), "expected two numbers"),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, monkeypatch, content: str, words: str) -> None:
    save(tmp_path)
    monkeypatch.setattr(precision, "native_precision", lambda device: "bf16")
    (tmp_path / "precision.json").write_text(content)
    with pytest.raises(SeggymError, match=words) as error:
        load_frozen(tmp_path, precision="auto")
    assert str(tmp_path / "precision.json") in str(error.value)


@pytest.mark.parametrize(
    ("native", "relative", "chosen"),
    [
        ("bf16", 0.009, "bf16"),
        ("bf16", 0.01, "fp32"),
        ("bf16", None, "fp32"),
        ("fp32", 0.0, "fp32"),
    ],
)
def test_auto_is_bf16_where_it_is_native_and_costs_little(
    tmp_path: Path, monkeypatch, native: str, relative: float | None, chosen: str
) -> None:
    monkeypatch.setattr(precision, "native_precision", lambda device: native)
    write_record(tmp_path, replace(RECORD, weights=save(tmp_path).weights, relative=relative))
    assert load_frozen(tmp_path, precision="auto").precision == chosen
    assert load_frozen(tmp_path, precision="fp32").precision == "fp32"
    assert judge(tmp_path, CPU).precision == chosen


def test_one_network_without_trust_keeps_all_of_them_in_fp32(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(precision, "native_precision", lambda device: "bf16")
    folders = [tmp_path / name for name in ("good", "bad")]
    for folder, relative in zip(folders, (0.0, 0.5), strict=True):
        write_record(folder, replace(RECORD, weights=save(folder).weights, relative=relative))
    assert resolve_precision("auto", CPU, folders[0]) == "bf16"
    assert resolve_precision("auto", CPU, *folders) == "fp32"
    assert resolve_precision("auto", CPU) == "fp32"
    assert FrozenNetwork(build_network("unet", 2, widths=[4, 6]), precision="auto").precision == "fp32"


def test_without_a_record_auto_is_fp32_and_says_once_how_to_measure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(precision, "native_precision", lambda device: "bf16")
    for name in ("full", "fold0", "reconstructor"):
        save(tmp_path / name, task="reconstruction" if name == "reconstructor" else "segmentation")
    with pytest.warns(UserWarning, match=rf"{tmp_path} .*train_reward_model\.sh"):
        assert load_frozen(tmp_path / "full", precision="auto").precision == "fp32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_frozen(tmp_path / "fold0", precision="auto").precision == "fp32"
        frozen = load_frozen(tmp_path / "reconstructor", precision="auto", task="reconstruction")
        assert frozen.precision == "fp32"
        monkeypatch.setattr(precision, "native_precision", lambda device: "fp32")
        save(tmp_path / "other" / "full")
        assert load_frozen(tmp_path / "other" / "full", precision="auto").precision == "fp32"


def test_the_packaged_networks_have_records_below_the_bar() -> None:
    model = open_reward_model("phantom")
    for name in model.cards:
        record = read_record(model.path(name))
        assert record is not None, name
        assert record.relative is not None
        assert record.relative < precision.LARGEST_REGRET
