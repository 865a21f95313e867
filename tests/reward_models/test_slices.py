"""Prepared slices: the cache on disk gives what `prepare` gives, and never what it gave for other data or settings."""

import contextlib
import errno
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open

from seggym.cohorts.acdc import open_acdc, write_example
from seggym.cohorts.cohort import Cohort, open_cohort
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition, SliceStack, prepare
from seggym.reward_models import slice_cache, slices
from seggym.reward_models.slices import preparation_settings, prepared_slices

SCAN = Acquisition(matrix=32, crop=24)
BOTH = ["patient001", "patient002"]


class Bench:
    """A small cohort, an empty cache, and a count of how often slices were prepared."""

    def __init__(self, folder: Path) -> None:
        self.data, self.cache = folder / "data", folder / "home" / "cache" / "slices"
        write_example(self.data, patients=2)
        self.prepared = 0

    def open(self) -> Cohort:
        return open_acdc(self.data)

    def get(self, patients: list[str] = BOTH, scan: Acquisition = SCAN, cohort: Cohort | None = None) -> SliceStack:
        """The slices as a new process gets them."""
        slices._stacks.clear()
        return prepared_slices(cohort or self.open(), patients, scan)

    def prepare(self, *arguments: Any) -> SliceStack:
        self.prepared += 1
        return prepare(*arguments)

    @property
    def entries(self) -> list[Path]:
        return sorted(self.cache.glob("[!.]*.safetensors"))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(slice_cache.LIMIT_VARIABLE, raising=False)
    bench = Bench(tmp_path)
    monkeypatch.setattr(slices, "prepare", bench.prepare)
    slice_cache._warned.clear()
    yield bench
    slices._stacks.clear()


def assert_equal(one: SliceStack, other: SliceStack) -> None:
    for field in fields(SliceStack):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert type(mine) is type(theirs)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


def test_second_process_reads_the_same_bits(bench):
    expected = prepare(bench.open().volumes(BOTH), SCAN, 4)
    for _ in range(3):
        assert_equal(bench.get(), expected)
    assert bench.prepared == 1
    assert prepared_slices(bench.open(), reversed(BOTH), SCAN) is prepared_slices(bench.open(), BOTH, SCAN)


def test_file_cannot_be_changed_through_the_tensors(bench):
    expected = bench.get().images.clone()
    bench.get().images.zero_()
    assert torch.equal(bench.get().images, expected)
    assert bench.prepared == 1


@pytest.mark.parametrize(
    "change",
    [{"matrix": 34}, {"crop": 22}, {"phase": (0.5, 2.0)}, {"echo_shift": 2.0}],
    ids=str,
)
def test_another_scan_is_prepared_anew(bench, change):
    bench.get()
    scan = replace(SCAN, **change)
    assert_equal(bench.get(scan=scan), prepare(bench.open().volumes(BOTH), scan, 4))
    assert bench.prepared == 2


def test_what_slices_do_not_depend_on_is_not_in_the_key(bench):
    bench.get()
    bench.get(scan=replace(SCAN, snr=7.0, initial_lines=5))
    assert bench.prepared == 1


def test_key_holds_all_that_preparing_reads(bench):
    class Recorder:
        """An acquisition that notes which of its attributes are read."""

        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(SCAN, name)

    read: set[str] = set()
    prepare(bench.open().volumes(BOTH), Recorder(), 4)  # type: ignore[arg-type]
    assert read == set(preparation_settings(SCAN))


def test_other_patients_are_prepared_anew(bench):
    bench.get()
    assert set(bench.get(["patient002"]).patients) == {"patient002"}
    assert bench.prepared == 2


def change_a_voxel(bench: Bench) -> None:
    path = bench.data / "patient001" / "patient001_frame01.nii.gz"
    image: Any = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[values.shape[0] // 2, values.shape[1] // 2, 0] += 1
    nib.save(nib.Nifti1Image(values, image.affine, image.header), path)


def test_changed_data_are_prepared_anew_and_the_old_entry_goes(bench, tmp_path):
    write_example(tmp_path / "other", patients=1)
    other = open_acdc(tmp_path / "other")
    bench.get(cohort=other, patients=["patient001"])
    (kept,) = bench.entries
    before = bench.get()
    bench.get(["patient001"])
    assert len(bench.entries) == 3
    change_a_voxel(bench)
    after = bench.get()
    assert_equal(after, prepare(bench.open().volumes(BOTH), SCAN, 4))
    assert not torch.equal(after.images, before.images)
    assert kept in bench.entries
    assert len(bench.entries) == 2
    assert {path.stem for path in bench.cache.glob("*.lock")} == {path.stem for path in bench.entries}


def test_data_changed_since_the_cohort_was_opened_are_not_kept(bench):
    cohort = bench.open()
    change_a_voxel(bench)
    bench.get(cohort=cohort)
    assert not bench.entries


def test_cohort_without_fingerprint_is_not_kept(bench):
    bench.get(cohort=replace(bench.open(), fingerprint="", fingerprint_now=None))
    assert bench.prepared == 1
    assert not bench.cache.exists()


def test_generated_cohorts_of_other_seeds_are_kept_side_by_side(bench):
    """They have no files that could have changed: another fingerprint is another cohort, not a newer one."""
    for seed in (0, 1):
        cohort = open_cohort("phantom", patients=2, test_patients=1, seed=seed)
        bench.get(sorted(cohort.groups), cohort=cohort)
    assert len(bench.entries) == 2


def test_an_entry_that_is_removed_while_it_is_read_is_prepared_anew(bench, monkeypatch):
    first = bench.get()

    def vanishing(path, framework):
        # What torch says where the file is gone between the reading of the header and the mapping.
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

    monkeypatch.setattr(slice_cache, "safe_open", vanishing)
    assert slice_cache._read(bench.entries[0], SliceStack) is None
    monkeypatch.setattr(slice_cache, "safe_open", safe_open)
    assert_equal(bench.get(), first)


def damage(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[:-1000]
    if how == "one bit":
        return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]
    if how == "a name":
        return content.replace(b"patient001_frame09", b"patient003_frame09")
    return {"empty": b"", "text": b"not a tensor in sight", "header only": content[:200]}[how]


@pytest.mark.parametrize("how", ["truncated", "one bit", "a name", "empty", "text", "header only"])
def test_damaged_entry_is_prepared_again(bench, how):
    expected = bench.get()
    (entry,) = bench.entries
    broken = damage(entry.read_bytes(), how)
    assert broken != entry.read_bytes()
    # A new file: the old one is still mapped.
    entry.unlink()
    entry.write_bytes(broken)
    assert_equal(bench.get(), expected)
    assert bench.prepared == 2
    assert_equal(bench.get(), expected)
    assert bench.prepared == 2


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_folder_that_cannot_be_written_is_one_warning(bench):
    bench.cache.parent.mkdir(parents=True)
    bench.cache.write_bytes(b"a file where the folder should be")
    expected = prepare(bench.open().volumes(BOTH), SCAN, 4)
    with pytest.warns(UserWarning, match="cannot be kept in"):
        assert_equal(bench.get(), expected)
    with no_warning():
        bench.get(["patient001"])
    assert bench.prepared == 2


def test_full_disk_is_one_warning_and_leaves_nothing(bench, monkeypatch):
    def write_half(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slice_cache, "save_file", write_half)
    expected = prepare(bench.open().volumes(BOTH), SCAN, 4)
    with pytest.warns(UserWarning, match="No space left"):
        assert_equal(bench.get(), expected)
    with no_warning():
        bench.get(["patient001"])
    assert {path.suffix for path in bench.cache.iterdir()} <= {".lock"}


def test_longest_unused_entries_go_first(bench, monkeypatch):
    first, second, third = ["patient001"], ["patient002"], BOTH
    for age, patients in ((200, first), (100, second)):
        before = set(bench.entries)
        bench.get(patients)
        (entry,) = set(bench.entries) - before
        os.utime(entry, (time.time() - age,) * 2)
    bench.get(first)  # a hit: now the second is the one that was not used for longest
    size = bench.entries[0].stat().st_size
    monkeypatch.setenv(slice_cache.LIMIT_VARIABLE, str(3.5 * size / 1e9))
    bench.get(third)  # twice the size of the others
    assert bench.prepared == 3
    bench.get(first)
    bench.get(third)
    assert bench.prepared == 3
    bench.get(second)
    assert bench.prepared == 4


def test_limit_of_the_cache(bench, monkeypatch):
    monkeypatch.setenv(slice_cache.LIMIT_VARIABLE, "0")
    bench.get()
    assert not bench.cache.exists()
    monkeypatch.setenv(slice_cache.LIMIT_VARIABLE, "1e-6")
    with pytest.warns(UserWarning, match=slice_cache.LIMIT_VARIABLE):
        bench.get()
    assert not bench.entries
    for text in ("ten", "-1", "nan"):
        monkeypatch.setenv(slice_cache.LIMIT_VARIABLE, text)
        with pytest.raises(SeggymError, match=slice_cache.LIMIT_VARIABLE):
            bench.get()


# --- several processes ------------------------------------------------------------------------------------------------

PROCESS = """
import sys, time
from pathlib import Path
from seggym.cohorts.acdc import open_acdc
from seggym.kspace.acquisition import Acquisition, prepare
from seggym.reward_models import slice_cache, slices

folder, name = Path(sys.argv[1]), sys.argv[2]

def wait_for_go(*arguments):
    (folder / f"{name}-prepares").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return prepare(*arguments)

def die_in_mid_write(tensors, path, metadata):
    path.write_bytes(b"half an entry")
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)

slices.prepare = wait_for_go
if name == "victim":
    slice_cache.save_file = die_in_mid_write
cohort = open_acdc(folder / "data")
(folder / f"{name}-asks").touch()
stack = slices.prepared_slices(cohort, cohort.patients, Acquisition(matrix=32, crop=24))
print(stack.images.double().sum().item())
"""


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(folder), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_one_process_prepares_while_the_other_waits(bench, tmp_path):
    first = start(tmp_path, "first")
    wait_until(tmp_path / "first-prepares", first)
    second = start(tmp_path, "second")
    wait_until(tmp_path / "second-asks", second)
    # Time enough for the second to come to the lock, or, were there none, to start preparing.
    time.sleep(0.3)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    expected = str(prepare(bench.open().volumes(BOTH), SCAN, 4).images.double().sum().item())
    assert [out.strip() for out, _ in outputs] == [expected] * 2, outputs
    assert not (tmp_path / "second-prepares").exists()


def test_kill_in_mid_write_leaves_no_entry(bench, tmp_path):
    (tmp_path / "go").touch()
    victim = start(tmp_path, "victim")
    victim.communicate(timeout=120)
    assert victim.returncode == -9
    (partial,) = bench.cache.glob(".partial-*")
    assert not bench.entries
    with no_warning():
        bench.get()
    assert bench.prepared == 1
    assert partial.exists(), "half an entry may belong to a writer at work, so it goes only when it is old"
    os.utime(partial, (time.time() - 2 * slice_cache._ABANDONED_S,) * 2)
    bench.get(["patient001"])
    assert not partial.exists()
