"""Parts of RL4Seg that need no cohort: training, scores, selection, monitors, styles, batch norm, folders."""

import csv
import io

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from skimage.exposure import match_histograms

from seggym.agents.rl4seg.baselines.batch_norm import adabn, batch_norms, tent
from seggym.agents.rl4seg.baselines.styles import augmented, exchange_amplitude, fourier_styled, histogram_matched
from seggym.agents.rl4seg.figures import _picture, example
from seggym.agents.rl4seg.folders import FINISHED, RunFolder
from seggym.agents.rl4seg.monitors import COLUMNS, observe, suspicions, table
from seggym.agents.rl4seg.scoring import score, scores_from_json
from seggym.agents.rl4seg.selection import Held, choose, evidence, foreground_dice, region
from seggym.agents.rl4seg.settings import Augmentation, LoopOptions, SelectionWeights
from seggym.agents.rl4seg.supervised import FitSettings, dice_score, fit, label_maps, mean_dice, probabilities
from seggym.errors import SeggymError
from seggym.reward_models.networks import UNet
from seggym.reward_models.seeding import seeded

NAMES = ("background", "cavity", "wall")


def squares(count=24, size=16, seed=0):
    """Bright squares in darker frames on noise: images (n, 1, H, W) and masks uint8 (n, H, W)."""
    generator = np.random.default_rng(seed)
    images, masks = generator.normal(0.1, 0.03, (count, size, size)), np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        row, column = generator.integers(2, size - 9, 2)
        mask[row : row + 7, column : column + 7] = 2
        mask[row + 2 : row + 5, column + 2 : column + 5] = 1
        image += np.array([0.0, 0.7, 0.4])[mask]
    return torch.from_numpy(images.clip(0, 1)).float()[:, None], torch.from_numpy(masks)


def network(norm="group", seed=0):
    with seeded(seed):
        return UNet(3, (8, 16, 24), norm=norm)


def everything(masks):
    return np.ones(len(masks), bool)


# --- supervised -------------------------------------------------------------------------------------------------------


def test_fit_learns_the_same_twice_and_leaves_its_start_alone():
    images, masks = squares()
    start, settings = network(), FitSettings(iterations=150, batch=8, learning_rate=1e-2)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    first, second = (fit(start, images, masks, settings, 3).network for _ in range(2))
    assert mean_dice(label_maps(first, images), masks, 3) > 0.7 > 0.3 > mean_dice(label_maps(start, images), masks, 3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert torch.equal(before[name], start.state_dict()[name])


def test_fit_keeps_the_weights_with_the_best_score():
    images, masks = squares(8)
    scores = iter([0.1, 0.9, 0.3])
    kept = []

    def judge(net):
        kept.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(scores)

    fitted = fit(network(), images, masks, FitSettings(iterations=3, batch=2, validate_every=1), 0, score=judge)
    assert fitted.scores == ((1, 0.1), (2, 0.9), (3, 0.3))
    assert fitted.best == 0.9
    assert all(torch.equal(value, kept[1][name]) for name, value in fitted.network.state_dict().items())


def test_fit_shows_images_of_the_style():
    images, masks = squares(8)
    seen = []

    def style(batch, places):
        seen.append(places)
        return batch * 0 + 0.5

    plain = fit(network(), images, masks, FitSettings(iterations=4, batch=4), 0).network
    styled = fit(network(), images, masks, FitSettings(iterations=4, batch=4), 0, style=style).network
    assert [len(places) for places in seen] == [4] * 4
    assert not torch.equal(plain.head.weight, styled.head.weight)


def test_fit_of_nothing_is_one_sentence():
    with pytest.raises(SeggymError, match="there is no image to learn from"):
        fit(network(), torch.zeros(0, 1, 16, 16), torch.zeros(0, 16, 16), FitSettings(), 0)
    with pytest.raises(SeggymError, match=r"pretrain\.iterations=0"):
        FitSettings(iterations=0)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_monai_and_by_hand():
    _, masks = squares(6)
    drawn = masks.roll(1, dims=2)
    found = score(drawn, masks, np.array([True, False] * 3), list("aabbcc"), list("123456"), NAMES)
    for column, label in enumerate((1, 2)):
        ours, theirs = (values == label for values in (drawn, masks))
        overlap = 2 * (ours & theirs).sum((1, 2)) / (ours.sum((1, 2)) + theirs.sum((1, 2)))
        np.testing.assert_allclose(found.dice[:, column], overlap, rtol=1e-6)
        expected = compute_hausdorff_distance(ours[:, None], theirs[:, None], include_background=True, percentile=95)
        np.testing.assert_allclose(found.hd95[:, column], expected[:, 0], rtol=1e-5)
    assert found.mean("valid") == pytest.approx(0.5)
    assert found.mean("dice/wall") == pytest.approx(found.dice[:, 1].mean())
    again = scores_from_json(found.to_json())
    np.testing.assert_array_equal(again.dice, found.dice)
    assert again.patients == found.patients


def test_all_background_has_no_distance_but_a_dice_of_zero():
    _, masks = squares(3)
    found = score(torch.zeros_like(masks), masks, np.zeros(3), list("abc"), list("123"), NAMES)
    assert (found.dice == 0).all()
    assert found.failed.all()
    assert np.isnan(found.hd95).all()
    assert np.isnan(found.mean("hd95"))
    empty = score(torch.zeros_like(masks), torch.zeros_like(masks), np.ones(3), list("abc"), list("123"), NAMES)
    assert np.isnan(empty.image_dice).all()
    assert not empty.failed.any()


def test_what_is_drawn_and_not_there_has_not_failed_to_be_found():
    _, masks = squares(1)
    without = torch.where(masks == 2, 0, masks)
    found = score(masks, without, np.ones(1), ["a"], ["1"], NAMES)
    assert np.isnan(found.dice[0, 1])
    assert np.isnan(found.hd95[0, 1])
    assert not found.failed.any()


def test_a_class_too_many_is_one_sentence():
    _, masks = squares(2)
    with pytest.raises(SeggymError, match=r"hold class 3, expected 0 to 2 \(background, cavity, wall\)"):
        score(masks + 1, masks, np.ones(2), "ab", "12", NAMES)


# --- selection --------------------------------------------------------------------------------------------------------


@pytest.fixture
def held():
    """Held-out images, and a reward that is 1 where a mask is right."""
    images, truth = squares(8)
    reference = truth.clone()
    reference[4:] = truth[4:].roll(1, dims=1)
    anchored = torch.tensor([True] * 4 + [False] * 4)
    return Held(images, reference, anchored), lambda _, masks: (masks == truth).float(), truth


def chosen(held, candidates, weights=None, valid=everything):
    weights = weights or SelectionWeights()
    found = {
        name: evidence(masks, held[0], held[1], lambda masks, name=name: valid(masks), weights.band)
        for name, masks in candidates.items()
    }
    return choose(found, weights)


def test_better_masks_are_chosen_and_equals_keep_the_first(held):
    best, record = chosen(held, {"supervised": held[0].reference, "better": held[2]})
    assert best == "better"
    assert record["candidates"]["better"]["reward"] == pytest.approx(1)
    assert chosen(held, {"supervised": held[2], "later": held[2].clone()})[0] == "supervised"


def test_validity_alone_buys_nothing(held):
    """Masks in the wrong place that are all valid lose to right ones of which a third is not."""
    wrong = held[2].roll(6, dims=2)
    valid = lambda masks: np.arange(len(masks)) % 3 > 0 if (masks == held[2].numpy()).all() else everything(masks)  # noqa: E731
    assert chosen(held, {"right": held[2], "valid": wrong}, valid=valid)[0] == "right"


def test_background_alone_buys_nothing(held):
    """It has a mean reward of .9 over images, but not near the heart, from where it cannot get away."""
    nothing = torch.zeros_like(held[2])
    assert float(held[1](None, nothing).mean()) > 0.75
    best, record = chosen(held, {"supervised": held[0].reference, "nothing": nothing})
    assert best == "supervised"
    assert record["candidates"]["nothing"]["reward"] < 0.75
    assert record["candidates"]["nothing"]["agreement"] == 0


def test_a_reward_net_that_is_fooled_is_held_by_the_anchors(held):
    """A reward of 1 for shifted masks and .8 for right ones does not pay for a policy that has lost its anchors."""
    fooled = held[2].roll(5, dims=1)
    reward = lambda _, masks: torch.full(masks.shape, 1.0 if torch.equal(masks, fooled) else 0.8)  # noqa: E731
    candidates = {"right": held[2], "fooled": fooled}
    assert chosen((held[0], reward, held[2]), candidates)[0] == "right"


def test_agreement_beyond_enough_is_worth_nothing(held):
    weights = SelectionWeights()
    found = evidence(held[0].reference, held[0], held[1], everything, 2)
    assert found.agreement == 1
    assert found.total(weights) == pytest.approx(found.reward + 0.25 + 0.5 * 0.9)


def test_without_anchors_or_reward_the_rest_decides(held):
    bare = Held(held[0].images, held[0].reference, torch.zeros(8, dtype=torch.bool))
    found = evidence(held[2], bare, None, everything, 2)
    assert np.isnan(found.agreement)
    assert found.total(SelectionWeights()) == pytest.approx(0.25)


def test_region_holds_both_masks_and_a_band():
    first, second = torch.zeros(2, 9, 9, dtype=torch.uint8), torch.zeros(2, 9, 9, dtype=torch.uint8)
    first[0, 4, 4], second[0, 0, 0] = 1, 2
    where = region(first, second, 1)
    assert where[0].sum() == 9 + 4
    assert where[1].all()


def test_foreground_dice_by_hand():
    first = torch.tensor([[[1, 1, 0, 2]], [[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    second = torch.tensor([[[1, 0, 0, 0]], [[0, 0, 0, 0]], [[2, 2, 2, 2]]])
    torch.testing.assert_close(foreground_dice(first, second), torch.tensor([(2 / 3 + 0) / 2, 1.0, 0.0]))


def test_schedules_are_those_of_rl4seg():
    options = LoopOptions()
    assert [options.weights(i) for i in (1, 2, 4)] == [(0.15, 0.05), (0.075, 0.025), (0.0375, 0.0125)]
    with pytest.raises(SeggymError, match="source_looks names 'histogramm'; did you mean histogram"):
        LoopOptions(source_looks=["histogramm"])


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_monitors_by_hand(held):
    _, reward, truth = held
    right = torch.nn.functional.one_hot(truth.long(), 3).movedim(-1, 1).float()
    supervised = right * 0.7 + 0.1
    row = observe(right, supervised, held[0].images, truth, reward, everything, 2)
    assert row["dice"] == row["accuracy"] == row["reward"] == row["reward_region"] == row["accuracy_region"] == 1
    assert row["kl"] == pytest.approx(np.log(1 / 0.8), rel=1e-4)
    assert row["entropy"] == pytest.approx(0, abs=1e-5)
    assert row["foreground"] == pytest.approx(49 / 256)
    same = observe(supervised, supervised, held[0].images, None, None, everything, 2)
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    assert np.isnan(same["dice"])
    assert np.isnan(same["reward"])


def test_the_signs_of_correlations_are_told():
    images, truth = squares(6)
    worse = torch.stack([mask.roll(shift, dims=1) for shift, mask in enumerate(truth)])
    believed = torch.nn.functional.one_hot(worse.long(), 3).movedim(-1, 1).float()
    honest = observe(believed, believed, images, truth, lambda _, masks: (masks == truth).float(), everything, 2)
    assert honest["corr_reward_accuracy"] == pytest.approx(1)
    assert honest["corr_uncertainty_dice"] < -0.9
    fooled = observe(believed, believed, images, truth, lambda _, masks: (masks != truth).float(), everything, 2)
    assert fooled["corr_uncertainty_dice"] > 0.9


def test_a_reward_that_rises_while_dice_falls_is_told():
    row = dict.fromkeys(COLUMNS, 0.5) | {"iteration": 1, "part": "test", "corr_uncertainty_dice": -0.5}
    before = row | {"phase": "before", "dice": 0.9, "reward_region": 0.8, "kl": 0.0}
    after = row | {"phase": "after", "dice": 0.8, "reward_region": 0.9, "kl": 0.1}
    assert suspicions([before, after]) == ["iteration 1 on test: the reward rose and Dice fell by 0.100"]
    assert suspicions([before, after | {"dice": 0.91}]) == []
    bad = after | {"dice": 0.91, "kl": 2.0, "foreground": 0, "corr_uncertainty_dice": 0.48}
    assert [line.partition(": ")[2][:20] for line in suspicions([before, bad])] == [
        "masks that the rewar",
        "the policy is 2.00 n",
        "the policy predicts ",
    ]
    rows = list(csv.DictReader(io.StringIO(table([before, after | {"dice": float("nan")}]).decode())))
    assert rows[0]["dice"] == "0.9"
    assert rows[1]["dice"] == ""


# --- styles and batch norm --------------------------------------------------------------------------------------------


def test_fourier_style_against_numpy():
    images, partners = (squares(2, 32, seed)[0] for seed in (0, 1))
    styled = exchange_amplitude(images, partners, 0.1)
    for image, partner, found in zip(images[:, 0].numpy(), partners[:, 0].numpy(), styled[:, 0].numpy(), strict=True):
        ours, theirs = np.fft.fft2(image), np.fft.fft2(partner)
        amplitude = np.abs(ours)
        for row in range(-3, 4):
            for column in range(-3, 4):
                amplitude[row, column] = np.abs(theirs)[row, column]
        expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(ours))).real
        np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-5)
    with seeded(0):
        same = fourier_styled(images[:1])(images[:1], torch.zeros(1))
    torch.testing.assert_close(same, images[:1], atol=1e-6, rtol=0)


def test_histograms_are_those_of_target_images():
    images, target = squares(3)[0], squares(1, seed=5)[0] ** 2
    styled = histogram_matched(target)(images, torch.arange(3))
    for image, found in zip(images[:, 0].numpy(), styled[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(found, match_histograms(image, target[0, 0].numpy()), atol=1e-6)
        np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), np.quantile(target, [0.1, 0.5, 0.9]), atol=0.02)


def test_strong_augmentation_follows_from_the_seed_and_leaves_some_images():
    images = squares(40)[0]
    style = augmented(Augmentation(["gain", "gamma", "blur"], share=0.5))
    with seeded(1):
        first = style(images, torch.arange(40))
    with seeded(1):
        second = style(images, torch.arange(40))
    assert torch.equal(first, second)
    unchanged = (first == images).flatten(1).all(1).float().mean()
    assert 0.3 < unchanged < 0.9
    assert first.min() >= 0
    assert first.max() <= 1


def test_adabn_has_the_statistics_of_the_images():
    twin, images = network("batch").eval(), squares(16)[0]
    adapted = adabn(twin, images, 8)
    first = batch_norms(adapted)[0]
    with torch.no_grad():
        seen = twin.stem[0](images).movedim(1, 0).flatten(1).double()
    np.testing.assert_allclose(first.running_mean, seen.mean(1), rtol=1e-4, atol=1e-6)
    halves = [part.var(1) for part in seen.unflatten(1, (2, -1)).unbind(1)]
    np.testing.assert_allclose(first.running_var, sum(halves) / 2, rtol=1e-4)
    for (name, before), after in zip(twin.named_parameters(), adapted.parameters(), strict=True):
        assert torch.equal(before, after), name
    assert not torch.equal(first.running_mean, batch_norms(twin)[0].running_mean)


def test_tent_lowers_entropy_by_scales_and_offsets_alone():
    twin, images = network("batch").eval(), squares(16)[0]

    def entropy(net):
        believed = probabilities(net, images)
        return float(-(believed * believed.log()).sum(1).mean())

    adapted = tent(twin, images, 8, 20, 1e-2, seed=0)
    assert entropy(adapted) < entropy(adabn(twin, images, 8)) - 0.01
    affine = {id(parameter) for layer in batch_norms(adapted) for parameter in layer.parameters()}
    for (name, parameter), before in zip(adapted.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, before) == (id(parameter) not in affine), name


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_stage_is_made_once_and_again_when_what_it_stands_on_changes(tmp_path):
    folder, made = RunFolder(tmp_path / "run", {"settings": {"seed": 0}}), []

    def make(name, content="x"):
        def write(path):
            made.append(name)
            (path / "file").write_text(content)
            return {"name": name}

        return write

    assert folder.stage("0/actor", [], make("actor")) == {"name": "actor"}
    folder.stage("1/rewards", ["0/actor"], make("rewards"))
    folder.stage("0/actor", [], make("actor"))
    folder.stage("1/rewards", ["0/actor"], make("rewards"))
    assert made == ["actor", "rewards"]
    (tmp_path / "run/0/actor" / FINISHED).unlink()
    folder.stage("0/actor", [], make("actor"))
    folder.stage("1/rewards", ["0/actor"], make("rewards"))
    assert made == ["actor", "rewards", "actor"]  # the same bits again: what stands on them stands
    (tmp_path / "run/0/actor/file").write_text("changed")
    folder.stage("0/actor", [], make("actor", "other"))
    folder.stage("1/rewards", ["0/actor"], make("rewards"))
    assert made[3:] == ["actor", "rewards"]


def test_a_stage_that_was_stopped_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path, {"settings": {}})

    def stopped(path):
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.stage("1/actor", [], stopped)
    assert folder.facts("1/actor") is None
    folder.stage("1/actor", [], lambda path: {"files": [entry.name for entry in path.iterdir()]})
    assert folder.facts("1/actor")["facts"] == {"files": []}


def test_wrong_folders_are_one_sentence(tmp_path):
    RunFolder(tmp_path / "run", {"settings": {"seed": 0, "widths": (1, 2)}})
    RunFolder(tmp_path / "run", {"settings": {"seed": 0, "widths": (1, 2)}})
    with pytest.raises(SeggymError, match=r"another settings\.seed, expected the one to be resumed"):
        RunFolder(tmp_path / "run", {"settings": {"seed": 1, "widths": (1, 2)}})
    (tmp_path / "foreign/0").mkdir(parents=True)
    with pytest.raises(SeggymError, match=r"has folders but no run\.json"):
        RunFolder(tmp_path / "foreign", {})
    with pytest.raises(SeggymError, match=r"stage 0/actor of .* is not finished"):
        RunFolder(tmp_path / "run", {"settings": {"seed": 0, "widths": (1, 2)}}).stage("1/x", ["0/actor"], dict)
    (tmp_path / "run/0/actor").mkdir(parents=True)
    (tmp_path / "run/0/actor" / FINISHED).write_text("{}")
    with pytest.raises(SeggymError, match="is no record of a stage: delete"):
        RunFolder(tmp_path / "run", {"settings": {"seed": 0, "widths": (1, 2)}}).facts("0/actor")


def test_dice_score_is_that_of_its_images():
    images, masks = squares(4)
    net = network()
    assert dice_score(images, masks, 3)(net) == mean_dice(label_maps(net, images), masks, 3)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_example_shows_masks_over_the_image():
    images, masks = squares(2)
    picture = example({"image": images[:, 0].numpy(), "truth": masks.numpy(), "reward map": np.zeros((2, 16, 16))})
    assert picture.startswith(b"\x89PNG")
    coloured = _picture(masks.numpy(), images[:, 0].numpy(), "truth")
    outside = masks.numpy() == 0
    np.testing.assert_array_equal(coloured[outside], np.repeat(images[:, 0].numpy()[outside][:, None], 3, 1))
    wall = masks.numpy() == 2
    expected = 0.5 * images[:, 0].numpy()[wall][:, None] + 0.5 * np.array([0.2, 0.75, 0.35])
    np.testing.assert_allclose(coloured[wall], expected, atol=1e-6)
