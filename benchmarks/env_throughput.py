"""How fast the environments are, and what of it is the network's forward pass.

``python benchmarks/env_throughput.py --out runs/throughput`` measures every id that this machine can build, each in a
process of its own (for its peak memory), beside the bare forward pass of the same networks. The two rows that begin
with ``reference`` are scans of 160 lines shown at 128 x 128, scored by exact SSIM and by a U-Net of 16-32-64-128
channels, each also against the straightforward implementation. What has been measured is kept in the folder and not
measured again.
"""

import argparse
from pathlib import Path
from typing import Any

from measuring import Case, measured

from seggym.envs import ENVIRONMENTS
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic, write_json

SCAN = {"matrix": 160, "crop": 128}
REFERENCES: dict[str, dict[str, Any]] = {
    "reference SSIM": {"env_id": "KSpaceRecon-Phantom-v0", "kwargs": {"acquisition": SCAN}},
    "reference U-Net": {
        "env_id": "KSpaceSeg-Phantom-v0",
        "kwargs": {"acquisition": SCAN},
        "reference_network": True,
    },
}


@one_sentence
def main() -> None:
    """Measure what is asked for, and print the table."""
    options = parse()
    out = Path(options.out)
    kspace = (name for name in ENVIRONMENTS if name.startswith("KSpace") and "Folder" not in name)
    names = options.ids or [*REFERENCES, *kspace]
    unknown = sorted(set(names) - {*REFERENCES, *ENVIRONMENTS})
    if unknown:
        raise SeggymError(
            f"--ids names {', '.join(unknown)}, expected some of {', '.join((*REFERENCES, *ENVIRONMENTS))}"
        )
    results: list[dict[str, Any]] = []
    for name in names:
        for precision in options.precisions:
            if "Recon" in name or "SSIM" in name:
                precision = "fp32"  # there is no network
            for count in options.num_envs:
                result = fetch(out, name, count, precision, options)
                if result is not None and result not in results:
                    results.append(result)
                    print(row(result), flush=True)
    text = "\n".join([HEADER, *map(row, results)])
    write_atomic(out / "throughput.txt", (text + "\n").encode())
    write_json(out / "throughput.json", results)
    plot(results, out / "throughput.png")
    print(f"{out / 'throughput.txt'}, .json, .png")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", nargs="*", help="ids, 'reference SSIM' or 'reference U-Net' (default: all)")
    parser.add_argument("--num-envs", nargs="*", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "auto"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="numpy", choices=("numpy", "torch"))
    parser.add_argument("--seconds", type=float, default=4.0, help="time per measurement")
    parser.add_argument("--out", default="runs/throughput", metavar="DIR")
    return parser.parse_args()


def fetch(out: Path, name: str, count: int, precision: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The figures of one measurement; None where the environment cannot be built here."""
    described = REFERENCES.get(name, {"env_id": name})
    case = Case(
        num_envs=count,
        device=options.device,
        # The reference network has no record of what bf16 does to it, so it is asked for by name.
        precision="bf16" if precision == "auto" and "reference_network" in described else precision,
        output=options.output,
        seconds=options.seconds,
        straightforward=name in REFERENCES and count == 64 and options.device == "cpu",
        **described,
    )
    slug = f"{name} {options.device} {precision} {options.output} {count}".replace(" ", "_").replace(":", "")
    return measured(out / f"{slug}.json", name, case)


HEADER = (
    f"{'environment':24}{'N':>5} {'prec':5}{'steps/s':>8}{'/CPU-s':>8}{'w. reset':>9}{'step us':>9}{'net us':>8}"
    f"{'over us':>8}{'ratio':>7}  {'acquire':>7}{'recon':>7}{'net':>7}{'metrics':>8}{'border':>7}{'MiB':>7}"
    f"{'naive us':>10}"
)


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    case, parts = result["case"], result["parts"]
    ratio = f"{result['ratio']:7.2f}" if result["ratio"] else f"{'':7}"
    shares = "".join(f"{100 * parts[name]:{width}.0f}%" for name, width in WIDTHS.items())
    naive = f"{result['straightforward_us']:10.0f}" if "straightforward_us" in result else ""
    return (
        f"{result['name']:24}{case['num_envs']:5d} {result['precision']:5}{result['image_steps_per_s']:8.0f}"
        f"{result['image_steps_per_cpu_s']:8.0f}{result['image_steps_per_cpu_s_with_resets']:9.0f}"
        f"{result['step_us']:9.0f}{result['forward_us']:8.0f}{result['overhead_us']:8.0f}{ratio}  {shares}"
        f"{result['peak_mib']:7.0f}{naive}"
    )


WIDTHS = {"acquire": 6, "reconstruct": 6, "network": 6, "metrics": 7, "border": 6}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Image-steps per CPU-second and overhead against N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for label in dict.fromkeys((result["name"], result["precision"]) for result in results):
        mine = sorted(
            (result for result in results if (result["name"], result["precision"]) == label),
            key=lambda result: result["case"]["num_envs"],
        )
        counts = [result["case"]["num_envs"] for result in mine]
        left.loglog(counts, [result["image_steps_per_cpu_s"] for result in mine], "o-", label=" ".join(label))
        right.loglog(counts, [max(result["overhead_us"], 1) for result in mine], "o-", label=" ".join(label))
    left.set(xlabel="environments N", ylabel="image-steps per CPU-second")
    right.set(xlabel="environments N", ylabel="overhead beyond the forward pass, us per image-step")
    left.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
