"""Figures of an evaluation, as PNG bytes: Dice against lines, who measures which line (spoke, block) when, areas."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from seggym.agents.results import EvaluationResult, PolicyResult
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.points import blocks_per_axis
from seggym.kspace.radial import spoke_angles

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
    draw = {"lines": line_order, "radial": spoke_order, "points": block_map}[result.acquisition.trajectory]
    for policy in result.policies:
        if policy.kind == "policy" or policy.privileged:
            figures[f"{result.noun}_{file_name(policy.name)}"] = draw(policy, result.acquisition)
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
        measured = f"{result.noun} measured after the initial ones ({result.origin} k-space)"
        axes.set(xlabel=measured, ylabel=metric, title=title)
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


def line_order(policy: PolicyResult, acquisition: Acquisition) -> bytes:
    """Share of the episodes in which each line is measured at each step of the longest run, DC in the middle."""
    centre = acquisition.matrix // 2
    share = view_shares(policy, acquisition.matrix)
    reach = int(np.abs(share.any(0).nonzero()[0] - centre).max(initial=0)) + 1
    half = min(centre, max(reach, _HEAT_HALF_WIDTH))
    window = share[:, centre - half : centre + half]
    return _by_step(window, (-half - 0.5, half - 0.5), "line relative to DC", f"Lines that {policy.name} measures")


def spoke_order(policy: PolicyResult, acquisition: Acquisition) -> bytes:
    """Share of the episodes in which each spoke is measured at each step of the longest run, by its angle."""
    share = view_shares(policy, acquisition.spokes)[:, np.argsort(spoke_angles(acquisition))]
    return _by_step(share, (0, 180), "angle of the spoke (degrees)", f"Spokes that {policy.name} measures")


def block_map(policy: PolicyResult, acquisition: Acquisition) -> bytes:
    """Share of the episodes of the longest run in which each block of k-space is measured, DC in the middle."""
    count, half = blocks_per_axis(acquisition), acquisition.matrix // 2
    share = view_shares(policy, count**2).sum(0).reshape(count, count)

    def draw(axes: "Axes") -> None:
        picture = axes.imshow(share, cmap="magma", vmin=0, vmax=1, extent=(-half, half, half, -half))
        axes.figure.colorbar(picture, ax=axes, label="share of episodes")
        axes.set(xlabel="kx relative to DC", ylabel="ky relative to DC", title=f"What {policy.name} measures")

    return png(draw, (5.2, 4.4))


def view_shares(policy: PolicyResult, views: int) -> np.ndarray:
    """Share of the episodes that measure each of the ``views`` at each step of the longest run, (T, views)."""
    chosen = np.concatenate([run["lines"] for run in policy.runs])
    share = np.zeros((chosen.shape[1], views))
    for step in range(chosen.shape[1]):
        measured = chosen[:, step][chosen[:, step] >= 0]
        np.add.at(share[step], measured, 1 / len(chosen))
    return share


def _by_step(share: np.ndarray, limits: tuple[float, float], label: str, title: str) -> bytes:
    """``share`` (T, n) as a heat map, the first step at the bottom."""

    def draw(axes: "Axes") -> None:
        picture = axes.imshow(
            share, aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=1, extent=(*limits, 0.5, len(share) + 0.5)
        )
        axes.figure.colorbar(picture, ax=axes, label="share of episodes")
        axes.set(xlabel=label, ylabel="step", title=title)

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
