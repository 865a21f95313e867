"""How the cost of a scan grows with the size of the image, the number of coils and the number of slices.

``python benchmarks/growth.py --out runs/growth`` measures each point in a process of its own and fits exponents: time
is proportional to size ** exponent between the smallest and the largest. Points that are in the folder already are not
measured again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Case, measured

from seggym.errors import one_sentence
from seggym.files import write_atomic, write_json

NUM_ENVS = 16
SIZES = (64, 96, 128, 192, 256, 320)
COILS = (1, 2, 4, 8, 16)
PATIENTS = (20, 60, 200, 600)
FIGURES = ("step_us", "overhead_us", "reset_us", "peak_mib")


@one_sentence
def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", help="of the U-Net")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per point")
    parser.add_argument("--out", default="runs/growth", metavar="DIR")
    options = parser.parse_args()
    out = Path(options.out)
    lines, fits = [], {}
    for name, points in series(options).items():
        results = {}
        for size, case in points.items():
            result = measured(out / f"{name}_{options.device}_{size}.json".replace(" ", "_"), name, case)
            if result is not None:
                results[size] = result
        lines += table(name, results)
        fits[name] = {figure: exponent(results, figure) for figure in FIGURES}
        print("\n".join(table(name, results)), flush=True)
    write_atomic(out / "growth.txt", ("\n".join(lines) + "\n").encode())
    write_json(out / "growth.json", fits)


def series(options: argparse.Namespace) -> dict[str, dict[int, Case]]:
    """What grows: name of the series -> its value -> what is measured there."""
    common: dict[str, Any] = {"num_envs": NUM_ENVS, "device": options.device, "seconds": options.seconds}
    recon = {**common, "env_id": "KSpaceRecon-Phantom-v0"}
    segment = {**common, "env_id": "KSpaceSeg-Phantom-v0", "reference_network": True, "precision": options.precision}

    def scan(crop: int, coils: int = 1) -> dict[str, Any]:
        return {"acquisition": {"matrix": crop * 5 // 4, "crop": crop, "coils": coils}}

    return {
        "image side, SSIM": {size: Case(**recon, kwargs=scan(size)) for size in SIZES},
        "image side, U-Net": {size: Case(**segment, kwargs=scan(size)) for size in SIZES},
        "coils, SSIM": {coils: Case(**recon, kwargs=scan(128, coils)) for coils in COILS},
        "patients, SSIM": {
            count: Case(**recon, kwargs={**scan(96), "cohort_options": {"patients": count}}) for count in PATIENTS
        },
    }


def table(name: str, results: dict[int, dict[str, Any]]) -> list[str]:
    """Lines of text: one per point, and the fitted exponents."""
    lines = [f"{name:20}" + "".join(f"{figure:>14}" for figure in FIGURES)]
    lines += [f"{size:<20}" + "".join(f"{row[figure]:14.0f}" for figure in FIGURES) for size, row in results.items()]
    return [*lines, f"{'exponent':20}" + "".join(f"{exponent(results, figure):14.2f}" for figure in FIGURES), ""]


def exponent(results: dict[int, dict[str, Any]], figure: str) -> float:
    """Slope of the least-squares line through the points on logarithmic axes; NaN for fewer than two."""
    values = [max(row[figure], 1e-9) for row in results.values()]
    if len(values) < 2:
        return float("nan")
    return float(np.polyfit(np.log(list(results)), np.log(values), 1)[0])


if __name__ == "__main__":
    main()
