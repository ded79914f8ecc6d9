"""Clocks that jump: time is measured by clocks that cannot, and files' times are compared with each other at most."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import RUN
from tests.support.aftermath import check_whole, content
from tests.support.forked import Fault, call, ended, start
from tests.support.project import Workbench

HOUR, YEARS = 3600.0, 1e9
JUMPS = {
    "back and forth": (0.0, -HOUR, HOUR, -24 * HOUR, 24 * HOUR),
    "years ahead": (0.0, YEARS),
    "back to the beginning": (0.0, -1.7e9),
}


@pytest.mark.parametrize("jumps", JUMPS.values(), ids=JUMPS)
def test_a_run_under_a_jumping_clock_is_like_any_other(
    fresh: Workbench, undisturbed: Workbench, jumps: tuple[float, ...]
) -> None:
    fresh.spec(matrix={"sae.k": [2, 4]}, metrics=["cross_entropy", "explained_variance"], resources__timeout="10m")
    done = call(fresh, *RUN, fault=Fault(clock=jumps))
    assert done.code == 0, done.err
    check_whole(fresh)
    assert weights(fresh) == weights(undisturbed)


@pytest.mark.parametrize("time", [0.0, 4e9])
def test_files_from_the_past_or_future_are_used_as_they_are(
    tmp_path: Path, undisturbed: Workbench, time: float
) -> None:
    bench = Workbench(tmp_path / "project")
    shutil.copytree(undisturbed.root, bench.root)
    for path in (bench.root / "results").rglob("*"):
        os.utime(path, (time, time))
    before = content(bench)
    done = call(bench, *RUN, "--json")
    assert done.code == 0, done.err
    assert '"reused": false' not in done.out
    shutil.rmtree(bench.root / "results/records")
    assert call(bench, *RUN).code == 0
    assert content(bench) == before


def test_two_runs_whose_clocks_disagree_by_years_share_the_work(fresh: Workbench, undisturbed: Workbench) -> None:
    processes = [start(fresh, *RUN, fault=Fault(clock=(shift,))) for shift in (-YEARS, YEARS)]
    assert [ended(fresh, process).code for process in processes] == [0, 0]
    assert content(fresh) == content(undisturbed)


def weights(bench: Workbench) -> dict[str, bytes]:
    """The trained SAEs; a timeout is in the spec, so records are not the same to the letter."""
    return bench.weights()
