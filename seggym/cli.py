"""The ``seggym`` command."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from seggym import __version__
from seggym.errors import SeggymError, one_sentence

# Torch and the environments cost seconds, so every sub-command imports what it needs when it runs.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command; exits with 0, or with 2 and one sentence where the user has something to mend."""
    sys.exit(_run(_parser().parse_args(arguments)))


@one_sentence
def _run(options: argparse.Namespace) -> int:
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("seggym", description="Environments for the decisions behind a segmentation.")
    parser.add_argument("--version", action="version", version=f"seggym {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check-data", help="list every problem of a data folder")
    check.add_argument("folder", metavar="DIR")
    cohorts = ("auto", "acdc", "camus", "chaos", "cmrxrecon", "davis", "folder", "mscmr", "raw")
    check.add_argument("--cohort", default="auto", choices=cohorts)
    check.add_argument("--num-classes", type=int, help="number of label values, background included")
    check.set_defaults(run=_check_data)

    convert = commands.add_parser("convert", help="write an ACDC download (NIfTI) as numbered PNG slices")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("destination", metavar="DST")
    convert.set_defaults(run=_convert)

    annotate = commands.add_parser("annotate", help="review and correct outlines of images in the browser")
    annotate.add_argument("folder", metavar="DIR", help="folder with images, such as the loop's annotate/")
    annotate.add_argument("--port", type=int, default=0, help="port on this machine (default: any that is free)")
    annotate.add_argument("--open", action="store_true", help="open the page in the browser")
    annotate.set_defaults(run=_annotate)

    compare = commands.add_parser("compare", help="paired differences between evaluations, or active-learning runs")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluated run, K1 result or AL run")
    compare.add_argument(
        "--axis", default="samples", help="of an AL run's area: samples, log_samples or rounds (default: samples)"
    )
    compare.set_defaults(run=_compare)

    doctor = commands.add_parser("doctor", help="what seggym found on this machine")
    doctor.set_defaults(run=_doctor)

    envs = commands.add_parser("envs", help="list the environments")
    envs.set_defaults(run=_envs)

    render = commands.add_parser("render", help="film one episode as GIF, or its end as PNG")
    render.add_argument("env_id", metavar="ENV_ID")
    who = render.add_mutually_exclusive_group()
    who.add_argument("--policy", default="random", help="a baseline's name, or module:function (default: random)")
    who.add_argument("--snapshot", metavar="DIR", help="folder of a training run")
    render.add_argument("--out", required=True, metavar="FILE", help="a .gif or .png file")
    render.add_argument("--seed", type=int, default=0, help="seed of the episode (default: 0)")
    render.add_argument("--budget", type=int, help="lines to measure after the initial ones")
    render.add_argument("--kwargs", default="{}", metavar="JSON", help="keyword arguments of the environment")
    render.set_defaults(run=_render)
    return parser


def _check_data(options: argparse.Namespace) -> int:
    from seggym.cohorts.checks import check_command

    return check_command(options.folder, options.cohort, options.num_classes)


def _convert(options: argparse.Namespace) -> int:
    from seggym.cohorts.convert import convert_acdc_to_png

    volumes = convert_acdc_to_png(options.source, options.destination)
    print(f"{volumes} volumes written to {options.destination}")
    return 0


def _annotate(options: argparse.Namespace) -> int:
    from seggym.agents.annotate.server import annotate_command

    return annotate_command(options.folder, options.port, options.open)


def _compare(options: argparse.Namespace) -> int:
    from seggym.agents.comparison import compare, comparison_text
    from seggym.agents.selection_comparison import compare_selection, selection_files, selection_text

    files = selection_files(options.runs)
    print(selection_text(compare_selection(files, options.axis)) if files else comparison_text(compare(options.runs)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from seggym.doctor import examine

    print("\n".join(examine()))
    return 0


def _envs(options: argparse.Namespace) -> int:
    from seggym.doctor import environment_table

    print(environment_table())
    return 0


def _render(options: argparse.Namespace) -> int:
    from seggym.filming import film

    kwargs = _json_object(options.kwargs)
    if options.budget is not None:
        kwargs["budget"] = options.budget
    path, end = film(options.env_id, options.snapshot or options.policy, options.out, options.seed, kwargs)
    print(f"{path}: {end}")
    return 0


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SeggymError(
            f'--kwargs is not JSON ({error}), expected an object such as \'{{"role": "test"}}\''
        ) from None
    if not isinstance(content, dict):
        raise SeggymError(f"--kwargs holds a {type(content).__name__}, expected a JSON object of keyword arguments")
    return content


if __name__ == "__main__":
    main()
