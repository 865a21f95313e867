"""A write that fails, or is killed, leaves the previous file as it was."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from seggym.errors import SeggymError, one_sentence
from seggym.files import read_json, write_atomic, write_json, write_together

OLD = b"the previous content"


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".partial")]


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("content", [b"new", lambda path: path.write_bytes(b"new")])
def test_a_write_replaces_the_file(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert write_atomic(path, content) == path
    assert path.read_bytes() == b"new"
    path.write_bytes(OLD)
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert leftovers(path.parent) == []


def test_writers_that_choose_a_format_by_the_suffix_work(tmp_path):
    path = write_atomic(tmp_path / "weights.npz", lambda temporary: np.savez(temporary, a=np.arange(3)))
    with np.load(path, allow_pickle=False) as file:
        assert file["a"].tolist() == [0, 1, 2]
    assert leftovers(tmp_path) == []


def test_a_new_file_has_ordinary_permissions(tmp_path):
    path = write_atomic(tmp_path / "file", b"new")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_full_disk_leaves_the_previous_file(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the write in the middle, as a full disk does."""
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    code = """
        import resource, signal, sys
        from seggym.errors import one_sentence
        from seggym.files import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        one_sentence(lambda: write_atomic(sys.argv[1], b"x" * (1 << 20)))()
    """
    process = run(code, path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert f"cannot write {path}" in errors
    assert "the previous file, if any, is unchanged" in errors
    assert path.read_bytes() == OLD
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_previous_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(SeggymError, match="Input/output error"):
        write_atomic(path, b"new")
    assert path.read_bytes() == OLD
    assert leftovers(tmp_path) == []


def test_files_that_belong_together_are_replaced_together(tmp_path):
    weights, card = tmp_path / "weights.bin", tmp_path / "card.json"
    weights.write_bytes(OLD)
    card.write_bytes(OLD)

    def refuse(temporary):
        raise OSError(28, "No space left on device")

    with pytest.raises(SeggymError, match=r"card\.json: No space left"):
        write_together({weights: b"new", card: refuse})
    assert weights.read_bytes() == card.read_bytes() == OLD
    assert leftovers(tmp_path) == []
    write_together({weights: b"new", card: b"new"})
    assert weights.read_bytes() == card.read_bytes() == b"new"


def test_an_exception_of_the_writer_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)

    def write(temporary):
        temporary.write_bytes(b"half of the new cont")
        raise RuntimeError("the writer broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_atomic(path, write)
    assert path.read_bytes() == OLD
    assert leftovers(tmp_path) == []


def test_the_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names))[1])
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace"]


def test_a_kill_during_a_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    code = """
        import sys, time
        from seggym.files import write_atomic
        def write(temporary):
            temporary.write_bytes(b"half of the new cont")
            print("half", flush=True)
            time.sleep(60)
        write_atomic(sys.argv[1], write)
    """
    process = run(code, path)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert path.read_bytes() == OLD
    # The next write goes through, whatever the killed one left behind.
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(SeggymError, match="cannot write"):
        write_atomic(tmp_path / "file" / "inside", b"new")


def test_json_has_no_nan(tmp_path):
    path = write_json(tmp_path / "file.json", {"a": [1.5, float("nan")], "b": (float("nan"),)})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": [None]}
    assert read_json(path) == {"a": [1.5, None], "b": [None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("inf")})
    assert read_json(path)["a"] == [1.5, None]


def test_json_that_is_missing_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(SeggymError, match=r"the split .*nothing\.json does not exist"):
        read_json(tmp_path / "nothing.json", "the split")
    (tmp_path / "half.json").write_text('{"a": [1, ')
    with pytest.raises(SeggymError, match="not readable JSON"):
        read_json(tmp_path / "half.json")


def test_one_sentence_shows_the_sentence_and_exits_with_2(capsys):
    @one_sentence
    def command():
        raise SeggymError("mend this")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: mend this\n"
