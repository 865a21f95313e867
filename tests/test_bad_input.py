"""Bad input as a user meets it: one sentence that says what to do, exit code 2, and nothing lost."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

import seggym
from seggym.cohorts import acdc
from seggym.cohorts.cohort import cohort_root, open_cohort
from seggym.configs.checking import build, require_at_least, require_choices, require_types
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError, one_sentence
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models.checkpoints import PACKAGED
from seggym.reward_models.frozen import load_frozen

ROOT = Path(__file__).parents[1]
PHANTOM_SCAN = {"matrix": 128, "crop": 96}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(acdc.write_example(tmp_path_factory.mktemp("acdc"), patients=6))


def run(*command: str, home: Path, file_size: int | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the repository; the kernel refuses files above ``file_size`` bytes, as a full disk would."""

    def limit() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    # Where this machine keeps its data must not matter.
    kept = {name: value for name, value in os.environ.items() if name not in ("SEGGYM_ACDC_ROOT", "SEGGYM_FOLDER_ROOT")}
    environment = {**kept, "SEGGYM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, preexec_fn=limit
    )


def sentence(process: subprocess.CompletedProcess[str]) -> str:
    """The last line of the errors, where exactly one begins with ``error:`` and nothing was a traceback."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    return errors[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("agents/train_reward_model.py", "cohort=acdc"), "no acdc data at .*SEGGYM_ACDC_ROOT"),
        (("agents/train_reward_model.py", "seed=abc"), "seed='abc' is a str, expected int"),
        (("agents/train_reward_model.py", "cohort=folder"), "no value for cohort.options.num_classes"),
        (("agents/gen_sampler.py", "cohort=folder"), "no value for cohort.options.num_classes"),
        (("agents/eval_asmr.py", "env=kspace_folder"), "no value for env.kwargs.num_classes"),
        (
            ("agents/train_asmr.py", "env=kspace_acdc", "datadir={example}"),
            "train one with `bash train_reward_model.sh",
        ),
        (("agents/eval_asmr.py", "load_from_snapshot_base_dir=nowhere"), "no snapshot at nowhere"),
    ],
)
def test_a_command_ends_with_one_sentence(command: tuple[str, ...], message: str, tmp_path: Path, example: str) -> None:
    arguments = [part.format(example=example) for part in command]
    if "train_asmr" in command[0]:
        arguments.append(f"run_dir={tmp_path}/run")
    found = sentence(run(*arguments, home=tmp_path))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found)


def test_a_full_disk_stops_stage_1_and_the_same_command_goes_on(tmp_path: Path, phantom_root: Path) -> None:
    """``torch.save`` reports a refused write as an error of its own, and it is the checkpoint that is refused."""
    command = ["agents/train_reward_model.py", "cohort=phantom", f"output={tmp_path}/model", "folds=0"]
    command += [
        "independent=null",
        "reward_model=unet_small",
        "reward_model.options.widths=[4,8]",
        "training.iterations=3",
    ]
    command += ["training.batch_size=1", "training.validate_every=1", "training.patience=0"]
    command += ["+cohort.options.patients=6", "+cohort.options.test_patients=1"]
    open_cohort("phantom", phantom_root, patients=6, test_patients=1)  # images are larger than the limit
    found = sentence(run(*command, home=tmp_path, file_size=1 << 13))
    assert "training_state.pt: File too large; the previous file, if any, is unchanged" in found
    assert not [path for path in (tmp_path / "model").rglob("*") if path.name.startswith(".partial")]
    done = run(*command, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model" / "full" / "model.json").read_text())["metrics"]["iterations"] == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_a_disk_that_refuses_a_log_is_one_sentence(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    @one_sentence
    def command() -> None:
        raise OSError(number, os.strerror(number), "events.out")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert f"cannot write events.out: {os.strerror(number)}" in capsys.readouterr().err


def test_other_operating_system_errors_are_no_sentence() -> None:
    @one_sentence
    def command() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "a fault of ours")

    with pytest.raises(ConnectionResetError):
        command()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"matrix": "x"}, "scan.matrix='x' is a str, expected int"),
        ({"matrix": True}, "scan.matrix=True is a bool, expected int"),
        ({"matrix": 128.5}, "scan.matrix=128.5 is a float, expected int"),
        ({"snr": "high"}, "scan.snr='high' is a str, expected float or int or null"),
        ({"colour": 1}, "scan.colour is unknown, expected some of matrix, crop"),
        (3, "scan=3 is a int, expected keys and values"),
    ],
)
def test_values_of_a_wrong_type_are_named(values: Any, message: str) -> None:
    with pytest.raises(SeggymError, match=message):
        build(Acquisition, values, "scan.")


def test_values_of_the_right_type_pass() -> None:
    assert build(Acquisition, {"snr": None}).snr is None
    assert build(Acquisition, {"snr": 10, "phase": [0.0, 1.0]}) == Acquisition(snr=10, phase=(0.0, 1.0))
    types = {"a": float | None, "b": dict[str, Any], "c": bool}
    with pytest.raises(SeggymError, match=r"^c=None is null, expected bool; mend the key$"):
        require_types({"c": None}, types)
    require_types({"a": None, "b": {}, "c": True}, types)
    require_types({"a": 1, "b": {}, "c": False}, types)


def test_the_first_field_below_its_limit_is_named() -> None:
    record = SimpleNamespace(rounds=3, share=0.0, rate=float("nan"))
    require_at_least(record, rounds=3, share=0)
    with pytest.raises(SeggymError, match=r"^loop\.rounds=3 must be at least 4$"):
        require_at_least(record, "loop.", share=0, rounds=4, rate=0)
    with pytest.raises(SeggymError, match=r"^share=-0\.5 must not be negative$"):
        require_at_least(SimpleNamespace(share=-0.5), share=0)
    with pytest.raises(SeggymError, match=r"^rate=nan must not be negative$"):
        require_at_least(record, rate=0)


def test_a_field_that_is_none_of_its_choices_is_named() -> None:
    record = SimpleNamespace(mode="mean", order="up")
    require_choices(record, {"mode": ("mean", "min")})
    with pytest.raises(SeggymError, match=r"^order='up' is unknown, expected one of rising, falling$"):
        require_choices(record, {"mode": ("mean", "min"), "order": ("rising", "falling")})


def test_the_phantom_model_is_accepted_on_real_data_with_a_warning(example: str) -> None:
    """patient001 of ACDC is not patient001 of the phantoms, whatever the names say."""
    arguments = {"data_root": example, "reward_model": "phantom", "role": "all"}
    with pytest.warns(UserWarning, match="trained on cohort phantom and scores cohort acdc"):
        env = gymnasium.make("KSpaceSeg-ACDC-v0", acquisition=PHANTOM_SCAN, **arguments)
    assert env.reset(seed=0)[1]["dice"].shape == (3,)
    with (
        pytest.warns(UserWarning, match="cohort phantom"),
        pytest.raises(SeggymError, match=r"acquisition=\{'matrix': 128, 'crop': 96\}"),
    ):
        gymnasium.make("KSpaceSeg-ACDC-v0", **arguments)


def test_a_role_without_patients_is_named(example: str, tmp_path: Path) -> None:
    names = [f"patient{number:03d}" for number in range(1, 7)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [], "val": names[:1], "test": names[1:]}))
    with pytest.raises(SeggymError, match=r"split.json has no patient with role=train among the 6"):
        gymnasium.make("KSpaceRecon-ACDC-v0", data_root=example, split=str(split))


def test_two_folders_for_one_cohort_are_refused(example: str) -> None:
    assert KSpaceSettings("acdc", root="a", data_root="a", reward_model="phantom").data_root == "a"
    with pytest.raises(SeggymError, match=r"root=/elsewhere and data_root=.* differ: pass one"):
        gymnasium.make("KSpaceRecon-ACDC-v0", data_root=example, root="/elsewhere")


def test_options_that_a_reader_does_not_know_are_named(example: str) -> None:
    with pytest.raises(SeggymError, match=r"unexpected keyword argument 'colour'.*its options are layout"):
        open_cohort("acdc", example, colour=1)
    with pytest.raises(SeggymError, match="num_classes"):
        open_cohort("folder", example)
    assert cohort_root("acdc", 2024) == Path("2024")  # type: ignore[arg-type]  # as Hydra reads datadir=2024


def test_a_network_in_use_is_still_checked_for_its_task() -> None:
    folder = PACKAGED["phantom"] / "full"
    load_frozen(folder)
    with pytest.raises(SeggymError, match="expected reconstruction"):
        load_frozen(folder, task="reconstruction")


@pytest.mark.parametrize("eval_range", [5, [5], "abc", [3, 1], [1, 2.5]])
def test_an_unusable_range_of_budgets_is_named(eval_range: Any, phantom_root: Path) -> None:
    options = {"cohort_options": {"patients": 6, "test_patients": 1}, "progress": False}
    with pytest.raises(SeggymError, match=r"must be \[a, b\]"):
        seggym.evaluate(lambda seen, mask: mask.argmax(1), "KSpaceRecon-Phantom-v0", eval_range=eval_range, **options)
