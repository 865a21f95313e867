"""Figures of an evaluation, as PNG bytes: Dice against lines, who measures which line when, areas."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from seggym.agents.results import EvaluationResult, PolicyResult

if TYPE_CHECKING:  # matplotlib takes a second to import and is not needed before the first figure
    from matplotlib.axes import Axes

_HEAT_HALF_WIDTH = 32  # lines shown on either side of DC; policies that leave them are shown in full


def all_figures(result: EvaluationResult) -> dict[str, bytes]:
    """Every figure of ``result`` by file name without suffix."""
    figures = {}
    for net in result.nets:
        for level in ("volume", "slice"):
            title = f"Dice per {level}, net {net}"
            figures[f"{level}_dice_by_lines_net_{net}"] = curves(result, net, level, "dice", title)
    figures["ssim_by_lines"] = curves(result, "image", "slice", "ssim", "SSIM")
    figures["areas"] = areas(result)
    matrix = int(result.settings["acquisition"]["matrix"])
    for policy in result.policies:
        if policy.kind == "policy" or policy.privileged:
            figures[f"lines_{file_name(policy.name)}"] = line_order(policy, matrix)
    return figures


def file_name(name: str) -> str:
    """``name`` with everything but letters, digits, dots and dashes replaced: safe in a path."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)


def curves(result: EvaluationResult, net: str, level: str, metric: str, title: str) -> bytes:
    """Mean over patients against lines, with 95 % bands; privileged policies dashed, full k-space dotted."""

    def draw(axes: "Axes") -> None:
        for policy in result.policies:
            points = ["full"] if policy.kind == "ceiling" else list(policy.points)
            rows = [row for point in points if (row := result.find(policy.name, net, point, metric, level))]
            mean, low, high = (np.array([row[key] for row in rows]) for key in ("mean", "low", "high"))
            if policy.kind == "ceiling":
                axes.axhline(mean[0], color="black", linestyle=":", label=policy.name)
                continue
            (line,) = axes.plot(points, mean, marker=".", label=policy.name)
            line.set(linestyle="--" if policy.privileged else "-", linewidth=2.5 if policy.kind == "policy" else 1.2)
            axes.fill_between(points, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
        axes.set(xlabel=f"lines measured after the initial ones ({result.origin} k-space)", ylabel=metric, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (7.5, 4.8))


def areas(result: EvaluationResult) -> bytes:
    """Areas with intervals by every network, best policy on top, privileged policies and full k-space hatched."""
    level, metric = result.headline[1:]
    nets = result.nets or ["image"]
    ranked = result.ranked()[::-1]

    def draw(axes: "Axes") -> None:
        height = 0.8 / len(nets)
        for index, net in enumerate(nets):
            rows = [result.find(policy.name, net, "area", metric, level) for policy in ranked]
            found = [row or {"mean": np.nan, "low": np.nan, "high": np.nan} for row in rows]
            mean = np.array([row["mean"] for row in found])
            spread = np.nan_to_num(np.abs([[row["low"], row["high"]] for row in found] - mean[:, None]).T)
            bars = axes.barh(
                np.arange(len(ranked)) - height * index, mean, height, xerr=spread, label=f"net {net}", alpha=0.8
            )
            for bar, policy in zip(bars, ranked, strict=True):
                bar.set_hatch("//" if policy.privileged or policy.kind == "ceiling" else "")
        axes.set_yticks(np.arange(len(ranked)) - height * (len(nets) - 1) / 2, [policy.name for policy in ranked])
        axes.set(xlabel=f"area of the curve of {metric} per {level}")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (7.5, 0.42 * len(ranked) + 1.2))


def line_order(policy: PolicyResult, matrix: int) -> bytes:
    """Share of the episodes in which each line is measured at each step of the longest run, DC in the middle."""
    lines = np.concatenate([run["lines"] for run in policy.runs])
    share = np.zeros((lines.shape[1], matrix))
    for step in range(lines.shape[1]):
        chosen = lines[:, step][lines[:, step] >= 0]
        np.add.at(share[step], chosen, 1 / len(lines))
    measured = lines[lines >= 0]
    reach = int(np.abs(measured - matrix // 2).max(initial=0)) + 1
    half = min(matrix // 2, max(reach, _HEAT_HALF_WIDTH))

    def draw(axes: "Axes") -> None:
        window = share[:, matrix // 2 - half : matrix // 2 + half]
        picture = axes.imshow(
            window, aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=1,
            extent=(-half - 0.5, half - 0.5, 0.5, lines.shape[1] + 0.5),
        )  # fmt: skip
        axes.figure.colorbar(picture, ax=axes, label="share of episodes")
        axes.set(xlabel="line relative to DC", ylabel="step", title=f"Lines that {policy.name} measures")

    return png(draw, (7.5, 3.6))


def png(draw: Callable[["Axes"], None], size: tuple[float, float]) -> bytes:
    """What ``draw`` makes of empty axes, as PNG; ``size`` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
