"""What is known of large files is kept from one process to the next, and hides no change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from latentbench.core import known_files
from latentbench.core.hashing import file_digest
from latentbench.core.known_files import kept_in, known, known_digest
from latentbench.store.derived import DERIVED, Derived


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since the files were written."""
    monkeypatch.setattr(known_files.time, "time_ns", lambda now=time.time_ns: now() + 3600 * 10**9)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read whole, in a process that knows none yet."""
    found: list[Path] = []
    monkeypatch.setattr(known_files, "file_digest", lambda *paths: (found.extend(paths), file_digest(*paths))[1])
    monkeypatch.setattr(known_files, "_LARGE", 1000)
    forget()
    return found


def forget() -> None:
    """As a new process knows nothing."""
    known_files._MADE.clear()


def large(folder: Path, content: bytes = b"x" * 1000) -> Path:
    path = folder / "large"
    path.write_bytes(content)
    return path


@pytest.mark.usefixtures("later")
def test_a_large_file_is_read_once_by_all_processes(tmp_path: Path, reads: list[Path]) -> None:
    path = large(tmp_path)
    for _ in range(3):
        forget()
        with kept_in(Derived(tmp_path / "store")):
            assert known_digest(path) == known_digest(path) == file_digest(path)
    assert reads == [path]


@pytest.mark.usefixtures("later")
def test_a_change_is_found_although_size_and_time_were_put_back(tmp_path: Path, reads: list[Path]) -> None:
    path = large(tmp_path)
    before = path.stat()
    with kept_in(Derived(tmp_path / "store")):
        known_digest(path)
        path.write_bytes(b"y" * 1000)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert known_digest(path) == file_digest(path)
        forget()
        assert known_digest(path) == file_digest(path)
        other = tmp_path / "other"
        other.write_bytes(b"z" * 1000)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, path)
        forget()
        assert known_digest(path) == file_digest(path)
    assert reads == [path] * 3


def test_what_changed_a_moment_ago_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path = large(tmp_path)
    with kept_in(Derived(tmp_path / "store")):
        for _ in range(2):
            forget()
            known_digest(path)
    assert reads == [path, path]


@pytest.mark.usefixtures("later")
def test_nothing_is_kept_of_small_files_or_where_nobody_said_so(tmp_path: Path, reads: list[Path]) -> None:
    store, small = tmp_path / "store", large(tmp_path, b"x" * 999)
    with kept_in(Derived(store)):
        known_digest(small)
    known_digest(large(tmp_path))
    assert not (store / DERIVED).exists()
    assert len(reads) == 2


@pytest.mark.usefixtures("later", "reads")
def test_findings_of_other_kinds_files_and_orders_are_apart(tmp_path: Path) -> None:
    one, two = large(tmp_path), tmp_path / "two"
    two.write_bytes(b"y" * 1000)
    with kept_in(Derived(tmp_path / "store")):
        assert [known("a", [one], lambda: 1), known("b", [one], lambda: 2), known("a", [two], lambda: 3)] == [1, 2, 3]
        assert known_digest(one, two) == file_digest(one, two) != known_digest(two, one)


@pytest.mark.usefixtures("later", "reads")
def test_what_cannot_be_found_out_is_not_kept(tmp_path: Path) -> None:
    path = large(tmp_path)

    def fails() -> int:
        raise ValueError("unreadable")

    with kept_in(Derived(tmp_path / "store")):
        for _ in range(2):
            with pytest.raises(ValueError, match="unreadable"):
                known("a", [path], fails)
        with pytest.raises(OSError, match="No such file"):
            known_digest(tmp_path / "missing")
