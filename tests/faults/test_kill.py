"""kill -9 at random moments: records are whole or absent, and the next run makes what is missing and nothing else."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from latentbench.core.errors import DamagedArtifact
from tests.conftest import furnish
from tests.faults.conftest import RUN, project
from tests.support.aftermath import check_whole, content, originals, phase
from tests.support.forked import Fault, call, ended, events_of, start
from tests.support.project import Workbench

Count = Callable[[str, object], None]


def killed(bench: Workbench, fault: Fault | None = None, after: float | None = None) -> bool:
    """Whether a run was killed: by its own fault, or from outside after some seconds."""
    process = start(bench, *RUN, fault=fault)
    if after is not None:
        time.sleep(after)
        process.kill()
    done = ended(bench, process)
    assert done.code in (0, -9), done.err
    check_whole(bench)
    return done.code == -9


def recovers(bench: Workbench, undisturbed: Workbench) -> None:
    """Raises unless the next run completes what is missing, keeps the rest, and ends up the same."""
    before = originals(bench)
    done = call(bench, *RUN)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert {path: path.stat().st_ino for path in before} == before
    assert content(bench) == content(undisturbed)


def strikes(root: Path, model: Path, undisturbed: Workbench, seeds: int, count: Count) -> None:
    """Kills runs at random events or moments, some of them twice, and lets each recover."""
    probe = project(root / "probe", model)
    began = time.monotonic()
    process = start(probe, *RUN)
    assert ended(probe, process).code == 0
    events, seconds = events_of(probe, process), time.monotonic() - began
    phases: Counter[str] = Counter()
    for seed in range(seeds):
        bench, generator = project(root / str(seed) / "project", model), random.Random(seed)
        for _ in range(1 + seed % 2):
            at_event = Fault(kill_at=generator.randint(1, events)) if seed % 3 else None
            if killed(bench, at_event, None if at_event else generator.uniform(0, seconds)):
                phases[phase(bench)] += 1
        recovers(bench, undisturbed)
    count("seeds", seeds)
    count("kills", sum(phases.values()))
    for name, times in sorted(phases.items()):
        count(f"while {name}", times)


def test_a_killed_run_is_completed_by_the_next(
    tmp_path: Path, tiny_model: Path, undisturbed: Workbench, record_property: Count
) -> None:
    strikes(tmp_path, tiny_model, undisturbed, 5, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_killed_at_many_moments_are_completed_by_the_next(
    tmp_path: Path, tiny_model: Path, undisturbed: Workbench, record_property: Count, seeds: int
) -> None:
    strikes(tmp_path, tiny_model, undisturbed, seeds, record_property)


def test_the_comparison_would_notice_a_flipped_bit(tmp_path: Path, tiny_model: Path, undisturbed: Workbench) -> None:
    bench = furnish(tmp_path / "project", tiny_model)
    bench.spec(matrix={"sae.k": [2, 4]}, metrics=["cross_entropy", "explained_variance"], training__lr=2e-3)
    assert call(bench, *RUN).code == 0
    assert content(bench) != content(undisturbed)
    path = next((undisturbed.root / "results").rglob("*.safetensors"))
    whole = path.read_bytes()
    try:
        before = content(undisturbed)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert content(undisturbed) != before
        with pytest.raises((AssertionError, DamagedArtifact)):
            check_whole(undisturbed)
    finally:
        path.write_bytes(whole)
