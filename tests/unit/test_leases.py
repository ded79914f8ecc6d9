"""At most one live worker holds a lease, whatever clocks say; the lease of a dead one is succeeded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from latentbench.core.errors import StoreError
from latentbench.store.leases import Leases, Owner
from latentbench.store.store import Store

NAME = "sae-" + "ab" * 32


def files(root: Path, folder: str) -> list[str]:
    return sorted(os.listdir(root / folder)) if (root / folder).is_dir() else []


def elsewhere(root: Path, name: str = NAME, number: int = 1) -> Path:
    """The lease of a worker on another machine, whose count stands still until somebody raises it."""
    owner = replace(Owner.here(), host="far", machine="another", pid=1)
    for folder in ("workers", "leases"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "workers" / owner.token).write_bytes(owner.line() + b"1\n")
    (root / "leases" / f"{name}.{number}").write_text(f"{owner.token}\n")
    return root / "workers" / owner.token


def ended() -> Owner:
    """A process of this machine that has ended."""
    code = "from latentbench.store.leases import Owner; print(Owner.here().line().decode())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    owner = Owner.parse(done.stdout)
    assert owner is not None
    return owner


def test_a_lease_is_held_once_and_free_again_when_released(tmp_path: Path) -> None:
    one, two = Leases(tmp_path), Leases(tmp_path)
    assert one.take([NAME]) == {NAME}
    assert two.take([NAME]) == set()
    assert one.take([NAME]) == set()
    assert str(os.getpid()) in str(two.owner(two.live()[0]))
    one.release([NAME])
    assert two.take([NAME, "tokens-x"]) == {NAME, "tokens-x"}
    two.release([NAME, "tokens-x"])
    assert files(tmp_path, "leases") == files(tmp_path, "workers") == []


def test_what_is_free_is_taken_and_the_rest_left(tmp_path: Path) -> None:
    one, two = Leases(tmp_path), Leases(tmp_path)
    with one.some(["a-1", "c-3"]) as first, two.some(["a-1", "b-2", "c-3", "d-4"]) as second:
        assert (first, second) == ({"a-1", "c-3"}, {"b-2", "d-4"})
    assert one.all() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_releases(tmp_path: Path, error: type[BaseException]) -> None:
    leases = Leases(tmp_path)
    with pytest.raises(error), leases.some([NAME]):
        raise error
    assert files(tmp_path, "leases") == files(tmp_path, "workers") == []


def test_a_worker_is_alive_as_long_as_its_count_moves(tmp_path: Path) -> None:
    file, observer = elsewhere(tmp_path), Leases(tmp_path, expiry=0.2, beat=0.05)
    for _ in range(12):
        file.write_bytes(file.read_bytes() + b"x")
        assert observer.take([NAME]) == set()
        time.sleep(0.03)


def test_a_worker_whose_count_stands_still_is_succeeded(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    observer, started = Leases(tmp_path, expiry=0.2, beat=0.05), time.monotonic()
    while not observer.take([NAME]):
        time.sleep(0.02)
    assert time.monotonic() - started >= 0.2
    assert files(tmp_path, "leases") == [f"{NAME}.2"]
    observer.release([NAME])


def test_time_in_which_nobody_looked_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path)
    observer, now = Leases(tmp_path, expiry=60, beat=5), 1000.0
    for _ in range(12):  # a machine that sleeps for an hour between any two looks
        now += 3600
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert observer.take([NAME]) == set()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    assert observer.take([NAME]) == {NAME}
    observer.release([NAME])


@pytest.mark.parametrize("shift", [-1e9, 1e9])
def test_clocks_that_jump_or_disagree_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    holder, observer = Leases(tmp_path), Leases(tmp_path)
    assert holder.take([NAME])
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + shift)
    for path in tmp_path.rglob("*"):
        os.utime(path, (true() + shift, max(0.0, true() + shift)))
    assert observer.take([NAME]) == set()
    holder.release([NAME])
    assert observer.take([NAME])
    observer.release([NAME])


def test_a_process_that_ended_on_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    file = elsewhere(tmp_path)
    owner = replace(ended(), token=file.name)
    file.write_bytes(owner.line())
    assert owner.gone
    with Leases(tmp_path).some([NAME]) as taken:
        assert taken == {NAME}


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    assert not Owner.here().gone
    assert replace(Owner.here(), started="1").gone
    assert not replace(Owner.here(), started="1", machine="another").gone


def test_a_lease_without_its_worker_is_nobodys(tmp_path: Path) -> None:
    elsewhere(tmp_path).unlink()
    with Leases(tmp_path).some([NAME]) as taken:
        assert taken == {NAME}


def test_a_lease_that_is_being_written_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / f"{NAME}.1").touch()
    observer = Leases(tmp_path, expiry=0.1, beat=0.05)
    assert observer.take([NAME]) == set()
    while not observer.take([NAME]):
        time.sleep(0.02)
    observer.release([NAME])


def test_of_two_that_come_at_once_the_later_to_look_withdraws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw nothing; a rival's file appears, under whatever number, before we look again."""
    leases = Leases(tmp_path)
    create = leases._create

    def with_rival(name: str, number: int, content: str) -> Path | None:
        made = create(name, number, content)
        elsewhere(tmp_path, number=number + 1)
        return made

    monkeypatch.setattr(leases, "_create", with_rival)
    assert leases.take([NAME]) == set()
    assert files(tmp_path, "leases") == [f"{NAME}.2"]


def test_a_heartbeat_raises_the_count(tmp_path: Path) -> None:
    leases = Leases(tmp_path, beat=0.02)
    assert leases.take([NAME])
    (file,) = (tmp_path / "workers").iterdir()
    before, deadline = file.read_bytes(), time.monotonic() + 10
    while file.read_bytes() == before:
        assert time.monotonic() < deadline
    assert Owner.parse(file.read_bytes()) == Owner.parse(before)
    leases.release([NAME])


def test_a_worker_that_was_succeeded_leaves_its_successors_lease_alone(tmp_path: Path) -> None:
    sleeper = Leases(tmp_path)
    assert sleeper.take([NAME])
    for file in (tmp_path / "leases").iterdir():  # judged dead by another, succeeded, and made under its old name
        file.unlink()
    elsewhere(tmp_path)
    sleeper.release([NAME])
    assert files(tmp_path, "leases") == [f"{NAME}.1"]


def test_a_fork_gives_back_nothing_of_its_parents(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from latentbench.store.leases import Leases
leases = Leases(Path(sys.argv[1]))
leases.take(["sae-x"])
if (child := os.fork()) == 0:
    leases.release(["sae-x"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert len(list(Path(sys.argv[1], "workers").iterdir())) == len(leases.live()) == 1
"""
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env={**os.environ, "PYTHONPATH": path})


def test_sweeping_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    file = elsewhere(tmp_path, "sae-dead")
    file.write_bytes(replace(ended(), token=file.name).line())
    elsewhere(tmp_path, "sae-far")
    leases = Leases(tmp_path)
    with leases.some(["sae-mine"]):
        assert leases.sweep() == 2
        assert files(tmp_path, "leases") == ["sae-far.1", "sae-mine.1"]


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"[" * 9999, b"../../etc/passwd\n", b"x" * 5000])
def test_files_that_are_no_leases_do_no_harm(tmp_path: Path, content: bytes) -> None:
    for folder in ("leases", "workers"):
        (tmp_path / folder).mkdir()
    for name in (f"{NAME}.1", "x", ".1", "a.b"):
        (tmp_path / "leases" / name).write_bytes(content)
        (tmp_path / "workers" / name).write_bytes(content)
    leases = Leases(tmp_path)
    leases.take([NAME])
    assert leases.take(["sae-other"]) == {"sae-other"}
    leases.sweep()
    leases.release(["sae-other", NAME])


def test_a_store_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot take a lease"):
        Leases(tmp_path / "file").take([NAME])


REF = ("sae", "ab" * 32)


def write(store: Store, key: str) -> None:
    with store.writing("sae", key, {}) as folder:
        (folder / "x").write_text("x")


def test_what_is_there_is_not_made(tmp_path: Path) -> None:
    write(Store(tmp_path), REF[1])
    Store(tmp_path).share([REF], lambda refs: pytest.fail(f"made {refs}"))


def test_what_could_not_be_made_is_not_asked_for_again(tmp_path: Path) -> None:
    asked: list[object] = []
    store = Store(tmp_path)
    store.share([REF, ("sae", "cd")], asked.append)
    assert asked == [[REF, ("sae", "cd")]]
    with pytest.raises(ZeroDivisionError):
        store.share([REF], lambda _: 1 / 0)
    assert store.leases.all() == []


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_what_another_makes_is_waited_for_and_only_the_rest_is_made(tmp_path: Path) -> None:
    other, asked = Store(tmp_path), list[object]()
    name = f"{REF[0]}-{REF[1]}"
    other.leases.take([name])

    def make(refs: list[tuple[str, str]]) -> None:
        asked.append(refs)
        for _, key in refs:
            write(Store(tmp_path), key)

    thread = in_thread(lambda: Store(tmp_path).share([REF, ("sae", "cd")], make))
    time.sleep(0.3)
    assert thread.is_alive()
    write(other, REF[1])
    other.leases.release([name])
    thread.join(10)
    assert not thread.is_alive()
    assert asked == [[("sae", "cd")]]


def test_what_another_failed_to_make_is_made(tmp_path: Path) -> None:
    other, asked = Store(tmp_path), list[object]()
    other.leases.take([f"{REF[0]}-{REF[1]}"])
    thread = in_thread(lambda: Store(tmp_path).share([REF], asked.append))
    time.sleep(0.1)
    other.leases.release([f"{REF[0]}-{REF[1]}"])
    thread.join(10)
    assert asked == [[REF]]


def test_once_reads_makes_or_waits(tmp_path: Path) -> None:
    store, made = Store(tmp_path), list[int]()

    def make() -> int:
        made.append(1)
        write(store, REF[1])
        return 5

    def read() -> int | None:
        return 5 if store.get(*REF) else None

    assert [store.once(*REF, read, make) for _ in range(3)] == [5, 5, 5]
    assert made == [1]


def test_owners_are_plain_data() -> None:
    owner = Owner.here()
    assert Owner.parse(owner.line() + b"000\n") == owner
    assert json.loads(owner.line())["pid"] == os.getpid()
