"""Truncated files and flipped bits: a damaged artifact is put aside and made again, a damaged record computed again."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from latentbench.store.store import MANIFEST
from tests.faults.conftest import RUN, experiment, project
from tests.support.aftermath import check_whole, content
from tests.support.forked import Fault, call
from tests.support.project import Workbench

Count = Callable[[str, object], None]


def damage(path: Path, generator: random.Random) -> str:
    """Does something to a file; returns what."""
    whole = path.read_bytes()
    place = generator.randrange(len(whole))
    kind = generator.choice(["cut", "flip", "empty", "lengthen", "zero"])
    if kind == "flip":
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << generator.randrange(8)]) + whole[place + 1 :])
    elif kind == "zero":  # as a file system leaves blocks that it never wrote
        path.write_bytes(whole[:place] + b"\0" * (len(whole) - place))
    else:
        path.write_bytes({"cut": whole[:place], "empty": b"", "lengthen": whole + b"\0"}[kind])
    return "same" if path.read_bytes() == whole else kind


def damaged(root: Path, undisturbed: Workbench, seeds: int, count: Count) -> None:
    """Damages a file of a finished run's store, or some, loses the records, and runs again.

    Of what a run always makes: whether it keeps hidden states is a matter of time, and it reads them only to train or measure.
    """
    kinds: Counter[str] = Counter()
    for seed in range(seeds):
        generator, bench = random.Random(seed), Workbench(root / str(seed))
        shutil.copytree(undisturbed.root, bench.root)
        shutil.rmtree(bench.root / "results/records")
        objects = bench.root / "results/store/objects"
        files = sorted(p for p in objects.rglob("*") if p.is_file() and objects / "states" not in p.parents)
        kinds.update(damage(path, generator) for path in generator.sample(files, 1 + seed % 3))
        done = call(bench, *RUN)
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        check_whole(bench)
        assert content(bench) == content(undisturbed)
        shutil.rmtree(bench.root)
    count("seeds", seeds)
    for kind, times in sorted(kinds.items()):
        count(kind, times)


def test_damaged_artifacts_are_made_again(tmp_path: Path, undisturbed: Workbench, record_property: Count) -> None:
    damaged(tmp_path, undisturbed, 3, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_artifacts_are_made_again(
    tmp_path: Path, undisturbed: Workbench, record_property: Count, seeds: int
) -> None:
    damaged(tmp_path, undisturbed, seeds, record_property)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_damaged_hidden_states_are_computed_again(fresh: Workbench, seed: int) -> None:
    generator, kept = random.Random(seed), fresh.root / "results/store/objects/states"
    experiment(fresh, resources={"cache": "always"})
    assert call(fresh, *RUN).code == 0
    before = content(fresh)
    files = sorted(path for path in kept.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    # A file of every artifact, so that one is damaged that training reads, and one that measuring reads.
    chosen = [
        generator.choice([p for p in files if p.parent == folder]) for folder in sorted({p.parent for p in files})
    ]
    kinds = [damage(path, generator) for path in chosen]
    for path in (fresh.root / "results/store/objects").iterdir():
        if path != kept:
            shutil.rmtree(path)  # all that was made of them
    shutil.rmtree(fresh.root / "results/records")
    done = call(fresh, *RUN)
    assert done.code == 0, (kinds, done.err)
    assert "Traceback" not in done.err
    check_whole(fresh)
    assert content(fresh) == before
    assert {p: p.read_bytes() for p in files if p.name != MANIFEST} == {
        p: b for p, b in whole.items() if p.name != MANIFEST
    }


def test_damaged_hidden_states_that_nothing_reads_are_left_to_verify(fresh: Workbench) -> None:
    experiment(fresh, resources={"cache": "always"})
    assert call(fresh, *RUN).code == 0
    before = content(fresh)
    path = next((fresh.root / "results/store/objects/states").rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    shutil.rmtree(fresh.root / "results/records")
    assert call(fresh, *RUN).code == 0
    assert content(fresh) == before
    verified = call(fresh, "store", "verify")
    assert verified.code == 1
    assert f"{path} does not have the bytes that were written" in verified.err
    assert not path.exists()
    assert call(fresh, "store", "verify").code == 0


@pytest.mark.parametrize("what", ["records/mine/*.json", "records/mine/*.safetensors"])
def test_damaged_records_and_statistics_are_computed_again(tmp_path: Path, undisturbed: Workbench, what: str) -> None:
    bench = Workbench(tmp_path / "project")
    shutil.copytree(undisturbed.root, bench.root)
    for number, path in enumerate(sorted((bench.root / "results").glob(what))):
        path.write_bytes(path.read_bytes()[: 10 + number])
    for verb in (RUN, ("leaderboard",), ("status",)):
        done = call(bench, *verb)
        assert "Traceback" not in done.err
    assert call(bench, *RUN).code == 0
    assert content(bench) == content(undisturbed)


def test_an_altered_number_is_open_until_it_is_computed_again(tmp_path: Path, undisturbed: Workbench) -> None:
    bench = Workbench(tmp_path / "project")
    shutil.copytree(undisturbed.root, bench.root)
    path = next((bench.root / "results/records/mine").glob("*.json"))
    record = json.loads(path.read_text())
    record["metrics"][0]["value"] += 0.3
    path.write_text(json.dumps(record))
    status = call(bench, "status")
    assert status.code == 3
    assert "its record is damaged: its digest does not hold" in status.out
    assert "1 cell done, 1 to run" in status.out
    assert call(bench, *RUN).code == 0
    assert call(bench, "status").code == 0
    assert content(bench) == content(undisturbed)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_a_damaged_checkpoint_costs_no_more_than_time(
    tmp_path: Path, tiny_model: Path, undisturbed: Workbench, seed: int
) -> None:
    generator, bench = random.Random(seed), project(tmp_path / "project", tiny_model)
    event = 0
    while not (states := [p for p in (bench.root / "results").glob("store/partial/*/*") if p.name[0] != "."]):
        event += 20  # until it dies in mid-training
        assert event < 1000
        assert call(bench, *RUN, fault=Fault(kill_at=event)).code == -9
    for state in states:
        damage(state, generator)
    done = call(bench, *RUN)
    assert done.code == 0, done.err
    assert content(bench) == content(undisturbed)
