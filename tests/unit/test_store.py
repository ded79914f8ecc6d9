"""An artifact is whole, verified and what its key says, or it is absent and can be made again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from latentbench.core.errors import StoreError
from latentbench.store.store import MANIFEST, Store
from tests.conftest import Command
from tests.support.project import Workbench

KEY = "ab" * 32


def fill(root: Path, key: str = KEY, content: bytes = b"weights") -> Path:
    store = Store(root)
    with store.writing("sae", key, {"payload": 1}) as folder:
        (folder / "a.bin").write_bytes(content)
        (folder / "b.json").write_text("{}")
    return store.folder("sae", key)


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_artifact_is_found_with_its_size_and_what_it_was_made_from(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    found = Store(tmp_path).get("sae", KEY)
    assert found is not None
    assert (found.folder, found.bytes) == (folder, 9)
    assert json.loads((folder / MANIFEST).read_text())["made_from"] == {"payload": 1}
    assert Store(tmp_path).get("tokens", KEY) is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_while_writing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    store = Store(tmp_path)
    with pytest.raises(error), store.writing("sae", KEY, {}) as folder:  # noqa: PT012
        (folder / "a.bin").write_bytes(b"half")
        raise error
    assert everything(tmp_path) == []
    assert not store.has("sae", KEY)


def test_an_artifact_that_is_no_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), Store(tmp_path).writing("sae", KEY, float("nan")):
        pass
    assert everything(tmp_path) == []


Damage = Callable[[Path], object]


def _manifest(**changes: object) -> Damage:
    def lie(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return lie


def _flip(folder: Path) -> None:
    content = bytearray((folder / "a.bin").read_bytes())
    content[3] ^= 1
    (folder / "a.bin").write_bytes(content)


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes((folder / "a.bin").read_bytes())
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(folder.parent / "elsewhere")


SOUND = {"bytes": 7, "sha256": "0" * 64}
DAMAGES: dict[str, Damage] = {
    "truncated": lambda folder: (folder / "a.bin").write_bytes(b"weigh"),
    "longer": lambda folder: (folder / "a.bin").write_bytes(b"weights!"),
    "a flipped bit": _flip,
    "a missing file": lambda folder: (folder / "a.bin").unlink(),
    "a file replaced by a link": _link,
    "an additional link": lambda folder: (folder / "c").symlink_to("/etc/passwd"),
    "an additional file": lambda folder: (folder / "training.json").write_text("{}"),
    "an additional folder": lambda folder: (folder / "c").mkdir(),
    "a manifest that is no JSON": lambda folder: (folder / MANIFEST).write_text("{"),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest of another key": _manifest(key="cd" * 32),
    "a manifest of another kind": _manifest(kind="tokens"),
    "a manifest without files": _manifest(files=None),
    "a manifest of no files": _manifest(files={}),
    "a manifest of other bytes": _manifest(files={"a.bin": SOUND, "b.json": SOUND}),
    "a manifest that leads elsewhere": _manifest(files={"../../x": SOUND}),
    "a manifest with a long name": _manifest(files={"x" * 999: SOUND}),
    "a manifest with an infinite size": _manifest(files={"a.bin": {"bytes": float("inf"), "sha256": ""}}),
    "a manifest with a NUL": _manifest(files={"a\0": SOUND}),
}


@pytest.mark.parametrize("damage", list(DAMAGES.values()), ids=list(DAMAGES))
def test_a_damaged_artifact_goes_to_quarantine_and_can_be_made_again(tmp_path: Path, damage: Damage) -> None:
    folder = fill(tmp_path)
    damage(folder)
    store = Store(tmp_path)
    assert store.get("sae", KEY) is None
    assert not folder.exists()
    assert [path.name for path in (tmp_path / "quarantine").glob("*/*")] == [KEY]
    fill(tmp_path)
    assert Store(tmp_path).get("sae", KEY) is not None


def test_a_folder_without_manifest_does_not_block_its_place(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / MANIFEST).unlink()
    assert Store(tmp_path).get("sae", KEY) is None
    fill(tmp_path)
    assert Store(tmp_path).get("sae", KEY) is not None


def test_what_another_process_put_aside_first_is_no_error(tmp_path: Path) -> None:
    Store(tmp_path).quarantine(tmp_path / "objects/sae/ab" / KEY)


def _write_many(root: Path, start: multiprocessing.synchronize.Event) -> None:  # type: ignore[name-defined]
    start.wait()
    for number in range(20):
        fill(root, f"{number:02}" * 32, bytes([number]) * 1000)


def test_many_writers_of_one_key_leave_one_whole_artifact(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    writers = [context.Process(target=_write_many, args=(tmp_path, start)) for _ in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert all(Store(tmp_path).get("sae", f"{number:02}" * 32) for number in range(20))
    assert not any((tmp_path / "tmp").iterdir())


def test_a_store_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot write to the store"), store.writing("sae", KEY, {}):
        pytest.fail("nothing can be written here")
    with pytest.raises(StoreError, match="cannot write to the store"):
        store.quarantine(tmp_path)


def test_bytes_are_checked_once_per_process_and_again_by_the_next(tmp_path: Path) -> None:
    folder, store = fill(tmp_path), Store(tmp_path)
    assert store.get("sae", KEY) is not None
    _flip(folder)
    assert store.get("sae", KEY) is not None
    assert Store(tmp_path).get("sae", KEY) is None


def test_verify_puts_damaged_artifacts_aside_and_says_so(bench: Workbench, command: Command) -> None:
    root = bench.project.store
    fill(root)
    other = fill(root, "cd" * 32)
    assert command("store", "verify").code == 0
    _flip(other)
    done = command("store", "verify")
    assert done.code == 1
    assert "1 artifact sound, 1 damaged" in done.out
    assert "damaged: " in done.err
    assert [a.key for a in Store(root).artifacts()] == [KEY]
    assert command("store", "verify").code == 0


def test_gc_says_what_it_would_delete_before_it_does(bench: Workbench, command: Command) -> None:
    root = bench.project.store
    fill(root)
    done = command("store", "gc")
    assert "1 artifact, 0.0 MiB would be deleted; add --yes" in done.out
    assert Store(root).has("sae", KEY)
    assert "deleted" in command("store", "gc", "--yes").out
    assert everything(root) == []
    assert json.loads(command("store", "ls", "--json").out) == []


def test_commands_on_a_store_that_is_not_there_find_nothing(command: Command) -> None:
    for verb in ("ls", "verify", "gc"):
        assert command("store", verb).code == 0


def test_the_store_is_readable_by_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing("sae", KEY, {}) as draft:
        (draft / "x").touch(mode=0o600)
    folder = store.folder("sae", KEY)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_manifests_without_a_digest_are_those_of_the_first_layout(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    (folder / MANIFEST).write_text(json.dumps({**content, "layout": 1}))
    assert Store(tmp_path).get("sae", KEY) is not None
    (folder / MANIFEST).write_text(json.dumps(content))
    assert Store(tmp_path).get("sae", KEY) is None
