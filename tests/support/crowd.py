"""Processes that all want the same artifacts, cheap ones, from one store at the same time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from latentbench.store.store import Ref, Store

KIND = "shared"
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Line:
    """Something a process did."""

    pid: int
    what: str
    """`began`, `finished`, or `killed` for the end of a process in the middle of its work."""
    key: str


def keys_of(count: int) -> list[str]:
    """Keys that look like real ones."""
    return [sha256(str(number).encode()).hexdigest() for number in range(count)]


def content_of(key: str) -> bytes:
    """What belongs under a key."""
    return key.encode() * 64


def work_together(folder: Path, processes: int, artifacts: int, kills: int, seconds: float = 240) -> list[Line]:
    """Lets a crowd work; `kills` of them die by SIGKILL in the middle of making something. What they did, in order."""
    crowd = [
        _CONTEXT.Process(target=_member, args=(str(folder), number, keys_of(artifacts), number < kills), daemon=True)
        for number in range(processes)
    ]
    for member in crowd:
        member.start()
    (folder / "go").touch()
    deadline = time.monotonic() + seconds
    for member in crowd:
        member.join(max(0.1, deadline - time.monotonic()))
    assert not any(member.is_alive() for member in crowd)
    assert sorted({member.exitcode for member in crowd}) == sorted({0, *([-signal.SIGKILL] if kills else [])})
    lines = (line.split() for line in (folder / "log").read_text().splitlines())
    return [Line(int(pid), what, key) for pid, what, key in lines]


def _member(folder: str, number: int, keys: list[str], dies: bool) -> None:
    generator, store = random.Random(number), Store(Path(folder) / "store")
    log = os.open(Path(folder) / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    make = _maker(store, log, generator, dies)
    wanted = [(KIND, key) for key in keys]
    generator.shuffle(wanted)
    while wanted:  # in helpings of different size, so that the sets of several members overlap
        size = generator.randint(1, 12)
        store.share(wanted[:size], make)
        del wanted[:size]


def _maker(store: Store, log: int, generator: random.Random, dies: bool) -> Callable[[list[Ref]], None]:
    def say(what: str, key: str) -> None:
        os.write(log, f"{os.getpid()} {what} {key}\n".encode())

    def make(refs: list[Ref]) -> None:
        for kind, key in refs:
            say("began", key)
            with store.writing(kind, key, {"payload": key}) as folder:
                (folder / "content").write_bytes(content_of(key))
                time.sleep(generator.uniform(0, 0.02))
                if dies:
                    say("killed", key)
                    os.kill(os.getpid(), signal.SIGKILL)
            say("finished", key)

    return make
