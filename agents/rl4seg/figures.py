"""Figures of RL4Seg: curves by iteration, reliability, and image, masks and reward map of test images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seggym.agents.figures import png

if TYPE_CHECKING:  # matplotlib takes a second to import and is not needed before the first figure
    from matplotlib.axes import Axes

Evaluations = Sequence[Mapping[str, Any]]
# Colours of the structures, in the order of their labels; more structures begin again.
_COLOURS = np.array([(0.9, 0.25, 0.2), (0.2, 0.75, 0.35), (0.25, 0.5, 1.0), (0.95, 0.8, 0.2)])


def number(value: Any) -> float:
    """A number out of JSON, where NaN is null."""
    return float("nan") if value is None else float(value)


def example(columns: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Rows of pictures: ``columns`` (n, H, W) by name, float in [0, 1] as grey or integer label maps in colours.

    A column called reward map is drawn in false colours, dark where a label is taken for wrong.
    """
    panels = [_picture(values, columns["image"], name) for name, values in columns.items()]
    rows = np.concatenate([np.concatenate(list(panel), 0) for panel in panels], 1)
    width = panels[0].shape[2]

    def draw(axes: "Axes") -> None:
        axes.imshow(rows, interpolation="nearest")
        axes.set_xticks([(place + 0.5) * width for place in range(len(panels))], list(columns), fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks([])

    return png(draw, (1.5 * len(panels), 1.5 * len(panels[0]) + 0.3))


def _picture(values: NDArray[Any], images: NDArray[np.floating], name: str) -> NDArray[np.floating]:
    """(n, H, W, 3)."""
    if name == "reward map":
        from matplotlib import colormaps

        return colormaps["magma"](values)[..., :3]
    if np.issubdtype(values.dtype, np.floating):
        return np.repeat(values[..., None], 3, axis=-1)
    colours = _COLOURS[(values.astype(int) - 1) % len(_COLOURS)]
    grey = np.repeat(images[..., None], 3, axis=-1)
    return np.where((values > 0)[..., None], 0.5 * grey + 0.5 * colours, grey)


def curve(evaluations: Evaluations, metric: str) -> bytes:
    """A number of the monitors on test by iteration, a line per seed; references where it is Dice or validity."""

    def draw(axes: "Axes") -> None:
        for content in evaluations:
            rows = [row for row in content["monitors"] if row["part"] == "test"]
            values = [row[metric] for row in rows if row["iteration"] == 1 and row["phase"] == "before"]
            values += [row[metric] for row in rows if row["phase"] == "after"]
            (line,) = axes.plot([number(value) for value in values], marker="o", label=f"seed {content['seed']}")
            if metric == "reward_region":
                truth = [row["accuracy_region"] for row in rows if row["phase"] == "after" or row["iteration"] == 1]
                truth = truth[:1] + truth[-(len(values) - 1) :]
                axes.plot([number(value) for value in truth], linestyle=":", color=line.get_color(), label="accuracy")
        reference = {"dice": "dice", "validity": "valid"}.get(metric)
        for style, name in (("--", "source_only"), ("-.", "self_training_validated"), (":", "supervised_target")):
            if reference and all(name in content["methods"] for content in evaluations):
                means = [content["methods"][name]["summary"]["test"][reference] for content in evaluations]
                axes.axhline(float(np.mean(means)), color="grey", linestyle=style, label=name)
        axes.set(xlabel="iteration", ylabel=metric.replace("_", " "), title=f"{metric.replace('_', ' ')} on test")
        axes.set_xticks(range(evaluations[0]["iterations"] + 1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (6.5, 4.0))


def reliability(evaluations: Evaluations) -> bytes:
    """Accuracy against confidence, pixels of all seeds together, temperatures fitted on source validation images."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for name in evaluations[0]["uncertainty"]:
            diagrams = [content["uncertainty"][name]["reliability"] for content in evaluations]
            pixels = np.array([entry["pixels"] for entry in diagrams], dtype=np.float64)
            sums = [
                (np.array([[number(value) for value in entry[key]] for entry in diagrams]), key)
                for key in ("confidence", "accuracy")
            ]
            totals = pixels.sum(0)
            means = [np.nansum(np.nan_to_num(values) * pixels, 0) / np.maximum(totals, 1) for values, _ in sums]
            there = totals > 0
            axes.plot(means[0][there], means[1][there], marker=".", label=name.replace("_", " "))
        axes.set(xlabel="confidence", ylabel="share of pixels that are right", title="Reliability, test")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (5.0, 4.6))
