"""What the store keeps within its quota, what it lets go, and why an artifact is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latentbench.records.record import ArtifactRef, Record, SpecOrigin
from latentbench.store.cleaning import evict, keep_within, loose, parse_size
from latentbench.store.derived import Derived
from latentbench.store.store import MANIFEST, Store
from tests.conftest import Command
from tests.support.project import Workbench


def write(store: Store, key: str, size: int, used: float, parents: tuple[str, ...] = ()) -> None:
    """An artifact of `size` bytes that was last used `used` seconds after the epoch."""
    with store.writing("sae", key, {"payload": {"k": size}, "parents": list(parents)}) as folder:
        (folder / "a.bin").write_bytes(b"x" * size)
    os.utime(store.folder("sae", key) / MANIFEST, (used, used))


def refer(bench: Workbench, *keys: str) -> Path:
    """A record that refers to artifacts."""
    record = Record(
        cell="9" * 64,
        spec=SpecOrigin(name="mine", path="specs/mine.yaml", digest=""),
        label="",
        resolved={},
        seed=0,
        status="ok",
        artifacts=tuple(ArtifactRef(kind="sae", key=key, bytes=1) for key in keys),
        created="2026-01-01T00:00:00+00:00",
    )
    return bench.write("results/records/mine/seed0-999999999999.json", record.model_dump_json(by_alias=True))


OLD, MIDDLE, NEW, KEPT = (digit * 64 for digit in "1234")


def quota_store(bench: Workbench) -> Store:
    store = Store(bench.project.store)
    for key, used in ((NEW, 3e8), (OLD, 1e8), (KEPT, 0), (MIDDLE, 2e8)):
        write(store, key, 1 << 20, used)
    refer(bench, KEPT)
    return store


def keys(store: Store) -> set[str]:
    return {artifact.key for artifact in store.artifacts()}


def test_a_quota_evicts_the_least_recently_used_and_never_what_a_record_refers_to(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = quota_store(bench)
    assert "2 artifacts, 2.0 MiB would be deleted" in command("store", "gc", "--quota", "2.5MiB").out
    assert len(keys(store)) == 4
    command("store", "gc", "--quota", "2.5MiB", "--yes")
    assert keys(store) == {NEW, KEPT}
    monkeypatch.setenv("LATENTBENCH_QUOTA", "1MB")
    done = command("store", "gc", "--yes")
    assert keys(store) == {KEPT}
    assert "more than the quota: records refer to the rest" in done.err
    assert "0 artifacts" in command("store", "gc", "--quota", "1 TB").out


def test_what_tables_keep_goes_before_any_artifact(bench: Workbench, command: Command) -> None:
    store = quota_store(bench)
    kept = Derived(store.root)
    kept.put_many("a", {f"{i:04x}": "x" * 1000 for i in range(2000)})
    command("store", "gc", "--quota", "50MiB")
    assert "tables" in command("store", "gc", "--quota", "4.5MiB").out
    assert kept.path.is_file(), "it was only said"
    command("store", "gc", "--quota", "4.5MiB", "--yes")
    assert not kept.path.exists()
    assert len(keys(store)) == 4
    kept.put_many("a", {"00": 1})
    assert keep_within(store, 1 << 40, tuple) == []
    assert kept.path.is_file()
    keep_within(store, 0, lambda: keys(store))
    assert not kept.path.exists()


def test_reading_counts_as_use(bench: Workbench, command: Command) -> None:
    store = quota_store(bench)
    assert Store(store.root).get("sae", OLD)
    command("store", "gc", "--quota", "2.5MiB", "--yes")
    assert keys(store) == {OLD, KEPT}


def test_what_live_workers_make_or_use_is_not_evicted(bench: Workbench, command: Command) -> None:
    store = quota_store(bench)
    with store.using([OLD]), store.leases.some([f"sae-{MIDDLE}"]):
        command("store", "gc", "--quota", "0", "--yes")
        assert keys(store) == {OLD, MIDDLE, KEPT}
        command("store", "gc", "--yes")
        assert f"sae          {MIDDLE[:16]} being made by process {os.getpid()}" in command("store", "ls").out
    assert keys(store) == {OLD, MIDDLE, KEPT}
    command("store", "gc", "--yes")
    assert keys(store) == {KEPT}


def test_what_somebody_begins_to_use_while_it_is_being_evicted_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in (OLD, NEW):
        write(store, key, 10, 1e8)
    going = evict(store, loose(store, ()))
    first = next(going)
    (left,) = keys(store)
    assert Store(tmp_path).get("sae", left)
    assert list(going) == []
    assert {first.key, left} == {OLD, NEW}


@pytest.mark.parametrize(
    ("text", "size"), [("50GiB", 50 << 30), ("1.5 kB", 1500), ("7", 7), ("2TB", 2 * 10**12), ("3 mib", 3 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "5 XB", "1_0", "١", "9" * 400, "\x1b[31m"])
def test_what_is_no_size_is_refused(command: Command, text: str) -> None:
    done = command("store", "gc", f"--quota={text}")
    assert done.code == 2
    assert "is not a size" in done.err
    assert "\x1b" not in done.err


def test_gc_clears_what_the_dead_left_behind(bench: Workbench, command: Command) -> None:
    root, old = bench.project.store, 1e8
    store = Store(root)
    stale = [root / "tmp/sae-x", root / "objects/.removed-y", root / "partial" / OLD, root / "quarantine/z"]
    fresh = [root / "tmp/sae-fresh", root / "partial" / NEW]
    for folder in (*stale, *fresh):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    hidden = bench.write("results/records/mine/.seed0.json.abc", "half")
    for folder in (*stale, root / "tmp" / "sae-x", hidden):
        for path in (folder / "file", folder):
            if path.exists():
                os.utime(path, (old, old))
    with store.leases.some([f"sae-{NEW}"]):
        assert "would be deleted" in command("store", "gc").out
        assert all(path.exists() for path in (*stale, *fresh, hidden))
        command("store", "gc", "--yes")
    assert [path.exists() for path in (*stale, hidden)] == [False, False, False, True, False]
    assert all(path.exists() for path in fresh)
    command("store", "gc", "--yes", "--quarantine")
    assert not stale[-1].exists()


def test_why_tells_parents_children_and_records(bench: Workbench, command: Command) -> None:
    store = Store(bench.project.store)
    write(store, OLD, 5, 0, parents=("a" * 64,))
    write(store, NEW, 6, 0, parents=(OLD,))
    refer(bench, OLD)
    done = command("store", "why", OLD[:5])
    assert f"sae {OLD}: stored, 0.00 MiB" in done.out
    assert 'made from {"k": 5}' in done.out
    assert "parent not in the store aaaaaaaaaaaaaaaa" in done.out
    assert f"child  sae              {NEW[:16]}" in done.out
    assert "record records/mine/seed0-999999999999.json" in done.out
    assert "no record refers to it" in command("store", "why", NEW).out
    assert json.loads(command("store", "why", OLD, "--json").out)["state"] == "stored"
    assert json.loads(command("store", "why", "9999", "--json").out)["state"] == "not in the store"


@pytest.mark.parametrize("key", ["", "f", "../x", "\x1b[2J", "x" * 5000])
def test_why_refuses_what_it_does_not_know(command: Command, key: str) -> None:
    done = command("store", "why", key)
    assert done.code == 2
    assert "neither the store nor a record knows a key" in done.err
    assert "\x1b" not in done.err


def test_why_refuses_what_is_ambiguous(bench: Workbench, command: Command) -> None:
    store = Store(bench.project.store)
    for key in ("12" * 32, "13" * 32):
        write(store, key, 1, 0)
    assert "2 keys begin with '1': 1212121212121212, 1313131313131313; give" in command("store", "why", "1").err


def test_a_run_keeps_the_store_within_its_quota(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTBENCH_QUOTA", "")
    bench.spec()
    store = Store(bench.project.store)
    write(store, OLD, 1 << 20, 1e8)
    assert command("run", "--executor", "inline", "--device", "cpu", "--quota", "nonsense").code == 2
    done = command("run", "--executor", "inline", "--device", "cpu", "--quota", "1MiB")
    assert done.code == 0, done.err
    left = keys(store)
    assert OLD not in left
    (record,) = bench.records().values()
    assert left == {artifact.key for artifact in record.artifacts}
