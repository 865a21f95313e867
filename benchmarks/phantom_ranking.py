"""Do the phantoms rank the baselines as real data do? Kendall's tau and both sets of curves.

python benchmarks/phantom_ranking.py runs/phantom/evaluation.json runs/acdc/evaluation.json docs/phantom_ranking.png
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
from scipy.stats import kendalltau

from seggym.errors import one_sentence
from seggym.files import read_json, write_atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NETS = {"A": "net A, which rewards", "B": "net B, independent"}


def areas(evaluation: dict[str, Any], net: str) -> dict[str, float]:
    """Area under the volume Dice of every baseline that sees no label of the slice it scans."""
    honest = {p["name"] for p in evaluation["policies"] if p["kind"] == "baseline" and not p["privileged"]}
    return {
        row["policy"]: row["mean"]
        for row in evaluation["results"]
        if row["policy"] in honest
        and (row["net"], row["budget"], row["metric"], row["level"]) == (net, "area", "dice", "volume")
    }


def draw(axes: Any, evaluation: dict[str, Any], names: list[str], title: str) -> None:
    """Dice per volume against the number of lines, by net A."""
    for name in names:
        points = [
            (row["budget"], row["mean"])
            for row in evaluation["results"]
            if row["policy"] == name
            and (row["net"], row["metric"], row["level"]) == ("A", "dice", "volume")
            and isinstance(row["budget"], int)
        ]
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(title=title, xlabel="lines after the initial ones (simulated k-space)", ylabel="Dice per volume, net A")


@one_sentence
def main(phantom_file: str, real_file: str, picture: str) -> None:
    """Print the areas and tau for both networks and write the figure."""
    phantom, real = (read_json(name, "evaluation") for name in (phantom_file, real_file))
    names: list[str] = []
    for net, description in NETS.items():
        on_phantom, on_real = areas(phantom, net), areas(real, net)
        names = sorted(set(on_phantom) & set(on_real), key=lambda name: -on_real[name])
        tau = kendalltau([on_phantom[name] for name in names], [on_real[name] for name in names])
        print(f"{description}: Kendall's tau {tau.statistic:.2f} (p = {tau.pvalue:.3f}, {len(names)} baselines)")
        print(f"{'':22}{'real':>8}{'phantom':>10}")
        for name in names:
            print(f"{name:22}{on_real[name]:8.3f}{on_phantom[name]:10.3f}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    draw(left, phantom, names, phantom["env_id"])
    draw(right, real, names, real["env_id"])
    right.legend(fontsize=8)
    write_atomic(Path(picture), lambda path: figure.savefig(path, dpi=110))


if __name__ == "__main__":
    main(*sys.argv[1:])
