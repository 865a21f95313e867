"""Fingerprints: always those of the content, and unchanged files are not read again."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from seggym.cohorts import fingerprints
from seggym.cohorts.fingerprints import fingerprint_files


class Folder:
    """A data folder, an empty memory of hashes, and the files that were read."""

    def __init__(self, path: Path) -> None:
        self.root, self.memory = path / "data", path / "home" / "cache" / "fingerprints"
        self.files = [self.root / "b.bin", self.root / "sub" / "a.bin"]
        for number, file in enumerate(self.files):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes([number]) * 1000)
        self.read: list[str] = []

    def fingerprint(self) -> str:
        self.read.clear()
        found = fingerprint_files(self.root, self.files)
        assert found == self.expected()
        return found

    def expected(self) -> str:
        """The definition, which published reward models rely on."""
        names = sorted(self.files)
        parts = [
            str(file.relative_to(self.root)).encode() + hashlib.sha256(file.read_bytes()).digest() for file in names
        ]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "home"))
    folder = Folder(tmp_path)

    def hash_file(path: Path):
        folder.read.append(path.name)
        return original(path)

    original = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", hash_file)
    return folder


@pytest.fixture
def later(monkeypatch):
    """A minute later, when the files are no longer new."""
    now = time.time_ns
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now() + 60 * 10**9)


@pytest.mark.usefixtures("later")
def test_unchanged_files_are_not_read_again(folder):
    before = folder.fingerprint()
    assert sorted(folder.read) == ["a.bin", "b.bin"]
    assert folder.fingerprint() == before
    assert folder.read == []


def test_value_is_pinned(folder):
    assert folder.fingerprint() == "ca98a7d8cfb749c4"


def test_file_written_just_now_is_not_trusted(folder):
    folder.fingerprint()
    folder.fingerprint()
    assert sorted(folder.read) == ["a.bin", "b.bin"]


@pytest.mark.usefixtures("later")
def test_change_is_seen_at_the_same_size_and_modification_time(folder):
    before = folder.fingerprint()
    status = folder.files[0].stat()
    folder.files[0].write_bytes(b"x" * 1000)
    os.utime(folder.files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.files[0].stat().st_mtime_ns == status.st_mtime_ns
    assert folder.fingerprint() != before
    assert folder.read == ["b.bin"]


@pytest.mark.usefixtures("later")
def test_link_to_another_file_is_seen(folder):
    for name in ("one", "two"):
        (folder.root / name).write_bytes(name.encode())
    link = folder.root / "link"
    link.symlink_to("one")
    folder.files.append(link)
    before = folder.fingerprint()
    link.unlink()
    link.symlink_to("two")
    assert folder.fingerprint() != before


@pytest.mark.usefixtures("later")
def test_added_and_removed_files_are_seen(folder):
    before = folder.fingerprint()
    removed = folder.files.pop()
    removed.unlink()
    added = folder.root / "c.bin"
    added.write_bytes(b"new")
    folder.files.append(added)
    assert folder.fingerprint() != before
    assert folder.read == ["c.bin"]
    (memory,) = folder.memory.iterdir()
    assert sorted(json.loads(memory.read_text())) == ["b.bin", "c.bin"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"b.bin": 3}', '{"b.bin": [[1, 2, 3, 4], "no hash"]}', "\xff"])
@pytest.mark.usefixtures("later")
def test_damaged_memory_is_made_again(folder, content):
    folder.fingerprint()
    (memory,) = folder.memory.iterdir()
    memory.write_bytes(content.encode("latin-1"))
    folder.fingerprint()
    assert sorted(folder.read) == ["a.bin", "b.bin"]
    folder.fingerprint()
    assert folder.read == []


@pytest.mark.usefixtures("later")
def test_memory_that_cannot_be_written_is_no_error(folder):
    folder.memory.parent.mkdir(parents=True)
    folder.memory.write_bytes(b"a file where the folder should be")
    folder.fingerprint()
    folder.fingerprint()
    assert sorted(folder.read) == ["a.bin", "b.bin"]
