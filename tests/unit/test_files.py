"""Files are whole or absent, whatever happens while they are written, and whatever they turn out to hold."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from latentbench.core.errors import DamagedArtifact, StoreError
from latentbench.store.files import arrays_of, bytes_of, read_arrays, read_json, write_arrays, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_makes_the_folder_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.json"
    write_json(path, {"x": [1, None, "ü"]})
    write_json(path, {"y": 2})
    assert read_json(path) == {"y": 2}
    assert names(path.parent) == ["c.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_an_interrupted_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_disk_that_refuses_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/inside", tmp_path / ("x" * 300), Path("/proc/nothing/x")):
        with pytest.raises(StoreError, match="cannot write"):
            write_bytes(path, b"")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_holds_no_nan_and_refusing_it_writes_nothing(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": number})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_arrays_come_back_with_types_and_shapes(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float64).reshape(2, 3).T, "b": np.zeros(0, dtype=np.int32)}
    write_arrays(tmp_path / "x.safetensors", arrays)
    found = read_arrays(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_truncated_arrays_are_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"a": np.ones(4)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedArtifact, match="not a valid safetensors file"):
        read_arrays(path)


def test_what_is_absent_cannot_be_read(tmp_path: Path) -> None:
    for read in (read_json, read_arrays):
        with pytest.raises(StoreError, match="cannot read"):
            read(tmp_path / "absent")


def test_files_of_one_layout_are_read_as_the_library_reads_them() -> None:
    layouts = (
        {
            "a": np.arange(3.0),
            "b": np.zeros((2, 0)),
            "c": np.array(2.5),
            "d": np.arange(6, dtype=np.int32).reshape(2, 3),
        },
        {"a": np.arange(3.0)},
    )
    for arrays in layouts:
        for factor in (1, 2, 3):
            content = save({name: np.asarray(array * factor) for name, array in arrays.items()})
            found, expected = arrays_of(content, "x"), load(content)
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                assert found[name].shape == array.shape
                assert np.array_equal(found[name], array)


def test_a_known_header_does_not_vouch_for_a_file_of_another_size() -> None:
    content = save({"a": np.arange(30.0)})
    arrays_of(content, "x")
    for other in (content[:-8], content + b"\0" * 8, content[:20], b""):
        with pytest.raises(DamagedArtifact, match="x is not a valid safetensors file"):
            arrays_of(other, "x")


def test_only_files_themselves_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert bytes_of(tmp_path / "file", 5) == b"12345"
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, most, said in (
        ("file", 4, errno.EFBIG),
        ("link", 5, errno.ELOOP),
        ("pipe", 5, errno.EINVAL),
        ("folder", 5, errno.EISDIR),
        ("none", 5, errno.ENOENT),
    ):
        with pytest.raises(OSError, match=name) as refused:
            bytes_of(tmp_path / name, most)
        assert refused.value.errno == said, name
