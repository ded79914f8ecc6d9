"""Disks that are full or must not be written: the cell is named, nothing is torn, and room is all that is needed to go on."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import RUN, project
from tests.support.aftermath import check_whole, content, originals
from tests.support.forked import Fault, call, ended, events_of, small_disk, start
from tests.support.project import Done, Workbench

Count = Callable[[str, object], None]

NOBODY = 65534
CELLS = ("mine[sae.k=2][seed=0]", "mine[sae.k=4][seed=0]")


def check_failed(bench: Workbench, done: Done) -> None:
    """Raises unless a run that found no room ended as it should."""
    assert done.code in (0, 1, 3), done.err
    assert "Traceback" not in done.err
    check_whole(bench)
    told = " ".join(done.err.split())
    if done.code == 3:
        assert any(cell in told for cell in CELLS)
    if done.code == 1:
        assert told.count("error: ") == 1
        assert "cannot" in told


def completes(bench: Workbench, undisturbed: Workbench) -> None:
    """Raises unless the next run keeps what there is, adds what is missing, and ends up the same."""
    before = originals(bench)
    done = call(bench, *RUN)
    assert done.code == 0, done.err
    assert {path: path.stat().st_ino for path in before} == before
    assert content(bench) == content(undisturbed)


def events(root: Path, model: Path) -> int:
    """How many changes of files a whole run makes."""
    bench = project(root / "probe" / "project", model)
    process = start(bench, *RUN)
    assert ended(bench, process).code == 0
    return events_of(bench, process)


def fill_up(root: Path, model: Path, undisturbed: Workbench, seeds: int, count: Count) -> None:
    """Runs whose disk is full from a random moment on."""
    last, codes = events(root, model), list[int]()
    for seed in range(seeds):
        bench = project(root / str(seed) / "project", model)
        done = call(bench, *RUN, fault=Fault(full_from=random.Random(seed).randint(1, last)))
        check_failed(bench, done)
        codes.append(done.code)
        completes(bench, undisturbed)
    count("moments", seeds)
    for code in sorted(set(codes)):
        count(f"exit code {code}", codes.count(code))


def test_a_disk_that_fills_up_costs_what_finds_no_room(
    tmp_path: Path, tiny_model: Path, undisturbed: Workbench, record_property: Count
) -> None:
    fill_up(tmp_path, tiny_model, undisturbed, 3, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disk_that_fills_up_at_many_moments(
    tmp_path: Path, tiny_model: Path, undisturbed: Workbench, record_property: Count, seeds: int
) -> None:
    fill_up(tmp_path, tiny_model, undisturbed, seeds, record_property)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts file systems of a given size; they are unmounted at the end."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def mount(size: str) -> Path:
            try:
                return stack.enter_context(small_disk(tmp_path / f"disk-{size}", size))
            except PermissionError as error:
                pytest.skip(str(error))

        yield mount


SIZES = [
    pytest.param(f"{size}k", marks=[] if size == 64 else pytest.mark.slow) for size in (8, 20, 32, 48, 64, 80, 96, 128)
]


@pytest.mark.parametrize("size", SIZES)
def test_a_small_disk(
    disk: Callable[[str], Path], tiny_model: Path, tmp_path: Path, undisturbed: Workbench, size: str
) -> None:
    bench, place = project(tmp_path / "project", tiny_model), disk(size)
    (bench.root / "results").symlink_to(place)
    done = call(bench, *RUN)
    check_failed(bench, done)
    assert done.code, "the disk was large enough"
    os.system(f"mount -o remount,size=16m '{place}'")
    completes(bench, undisturbed)


@pytest.mark.parametrize(
    "bytes_", [600, pytest.param(200, marks=pytest.mark.slow), pytest.param(3000, marks=pytest.mark.slow)]
)
def test_files_that_cannot_grow(tmp_path: Path, tiny_model: Path, undisturbed: Workbench, bytes_: int) -> None:
    bench = project(tmp_path / "project", tiny_model)
    done = call(bench, *RUN, fault=Fault(largest_file=bytes_))
    assert done.code in (1, 3)  # what it says is not complete either: that goes to a file as well
    assert "Traceback" not in done.err
    check_whole(bench)
    completes(bench, undisturbed)


@pytest.fixture
def public(tiny_model: Path) -> Iterator[Workbench]:
    """A project that other users can reach, but not write to."""
    folder = Path(tempfile.mkdtemp(prefix="latentbench-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        bench = project(folder / "project", tiny_model)
        for path in bench.root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield bench
    finally:
        shutil.rmtree(folder)


def as_another(bench: Workbench) -> Fault:
    """Somebody who may not write: root may write everywhere, so it becomes nobody."""
    if os.getuid() == 0:
        return Fault(user=NOBODY)
    bench.root.chmod(0o555)
    return Fault()


def test_results_that_must_not_be_written(public: Workbench, undisturbed: Workbench) -> None:
    fault = as_another(public)
    try:
        done = call(public, *RUN, fault=fault)
        assert done.code == 3, done.err
        assert "Traceback" not in done.err
        for cell in CELLS:
            assert f"{cell} has no record: cannot write" in done.err
            assert f"no numbers {cell}" in done.err
    finally:
        public.root.chmod(0o755)
    completes(public, undisturbed)


def test_finished_results_that_must_not_be_written_can_be_read(public: Workbench, undisturbed: Workbench) -> None:
    assert call(public, *RUN).code == 0
    before = content(public)
    fault = as_another(public)
    for verb in (("status",), ("plan",), ("leaderboard",), ("store", "ls"), ("store", "verify"), ("store", "gc")):
        done = call(public, *verb, fault=fault)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    public.root.chmod(0o755)
    assert content(public) == before == content(undisturbed)
