"""Many processes on one store: nothing is made twice by the living, what the dead began is taken over."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from latentbench.store.store import Store
from tests.faults.conftest import RUN
from tests.support import crowd
from tests.support.aftermath import check_whole, content
from tests.support.forked import ended, made_by, start
from tests.support.project import Workbench

Count = Callable[[str, object], None]


def together(fresh: Workbench, undisturbed: Workbench, runs: int, kills: int, seed: int) -> int:
    """Starts runs of one spec at once, kills some; returns how many artifacts were made. Raises on duplicates."""
    generator = random.Random(seed)
    processes = [start(fresh, *RUN) for _ in range(runs)]
    victims = generator.sample(processes, kills)
    for victim in victims:
        time.sleep(generator.uniform(0, 1.5))
        victim.kill()
    codes = {process: ended(fresh, process) for process in processes}
    assert {done.code for process, done in codes.items() if process not in victims} == {0}
    assert not any("Traceback" in done.err for done in codes.values())
    check_whole(fresh)
    assert content(fresh) == content(undisturbed)
    made = [key for process in processes if process not in victims for key in made_by(fresh, process)]
    assert len(made) == len(set(made))
    everything = Counter(made) + Counter(key for victim in victims for key in made_by(fresh, victim))
    # A victim may have been killed between announcing the last rename and doing it.
    assert sum(everything.values()) - len(everything) <= kills
    return len(everything)


def test_two_runs_of_one_spec_share_the_work(fresh: Workbench, undisturbed: Workbench, record_property: Count) -> None:
    record_property("artifacts made once", together(fresh, undisturbed, runs=2, kills=0, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_runs_of_one_spec_share_the_work_of_those_that_are_killed(
    fresh: Workbench, undisturbed: Workbench, record_property: Count, seed: int
) -> None:
    record_property("runs", 5)
    record_property("kills", 2)
    record_property("artifacts", together(fresh, undisturbed, runs=5, kills=2, seed=seed))


def check_crowd(tmp_path: Path, processes: int, artifacts: int, kills: int, count: Count) -> None:
    """Has a crowd make artifacts that all of them want; raises if one is made twice, damaged or missing."""
    said = crowd.work_together(tmp_path, processes, artifacts, kills)
    keys, store = crowd.keys_of(artifacts), Store(tmp_path / "store")
    killed = {line.pid for line in said if line.what == "killed"}
    finished = Counter(line.key for line in said if line.what == "finished")
    begun = Counter(line.key for line in said if line.what == "began" and line.pid not in killed)
    assert len(killed) == kills
    assert finished == Counter(keys)
    assert all(times == 1 for times in begun.values())
    assert all(store.verify(crowd.KIND, key) for key in keys)
    assert {(store.folder(crowd.KIND, key) / "content").read_bytes() for key in keys} == {*map(crowd.content_of, keys)}
    assert not any((tmp_path / "store/quarantine").glob("*"))
    for name, number in (("processes", processes), ("artifacts", artifacts), ("killed", kills)):
        count(name, number)
    count("made twice", sum(finished.values()) - len(finished))


def test_a_crowd_makes_everything_once(tmp_path: Path, record_property: Count) -> None:
    check_crowd(tmp_path, processes=8, artifacts=40, kills=2, count=record_property)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 10])
def test_fifty_processes_make_everything_once(tmp_path: Path, record_property: Count, kills: int) -> None:
    check_crowd(tmp_path, processes=50, artifacts=400, kills=kills, count=record_property)
