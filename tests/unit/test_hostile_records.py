"""Records by others: whatever stands in one, tables, comparisons, exports and plans go on with the rest, without a traceback.

Each is a sound record in which values of any field are replaced, removed, wrapped or renamed and whose digest was made
anew, so that its oddities reach everything that reads records.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from latentbench.core.errors import LatentbenchError
from latentbench.exchange.exporting import FolderFormat, write_folder
from latentbench.leaderboard.api import BoardFormat, ComparisonFormat, compare_records, leaderboard, leaderboard_parquet
from latentbench.leaderboard.load import load
from latentbench.records.lineage import lineage
from latentbench.records.results import read_record, referred_keys
from latentbench.report.frontier import frontiers
from latentbench.store.store import Store
from tests.support.damaged import torn_json
from tests.unit.leaderboard_factory import Planted, rewritten, write

Count = Callable[[str, object], None]
RECORDS = Path(__file__).parents[2] / "results/records"
KINDS = ("quickstart/topk", "papers/steering_vectors/pocket", "papers/feature_flow/pocket", "latents/pocket")
GOOD = "good/one"


def hostile(folder: Path, generator: random.Random) -> Path:
    """A record of some kind with something done to it, beside its statistics."""
    source = generator.choice(sorted((RECORDS / generator.choice(KINDS)).glob("*.json")))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / source.name
    statistics = source.with_suffix(".safetensors")
    shutil.copy(statistics, folder / statistics.name)
    content = source.read_bytes()
    # Metrics are nine tenths of a record; what stands around them is as much of an attack.
    content = json.dumps({**(plain := json.loads(content)), "metrics": plain["metrics"][:3]}).encode()
    path.write_bytes(torn_json(content, generator))
    return path


def everything(results: Path, output: Path) -> None:
    """Every way to read the results of a folder."""
    shown = [leaderboard(results, format) for format in get_args(BoardFormat)]
    assert all(GOOD in text or GOOD.replace("_", r"\_") in text for text in shown)
    leaderboard_parquet(results)
    for format in get_args(FolderFormat):
        write_folder(load(results), format, output / format)
    for cell in load(results).loaded:
        for comparison in get_args(ComparisonFormat):
            attempt(lambda cell=cell, form=comparison: compare_records(results, str(results / cell.path), GOOD, form))  # type: ignore[misc]
    referred_keys(results)
    attempt(lambda: lineage(Store(output / "store"), results, "0"))
    attempt(lambda: frontiers([cell.record for cell in load(results).loaded], "lab"))


def attempt(read: Callable[[], Any]) -> None:
    """Only errors for people may be raised."""
    with suppress(LatentbenchError):
        read()


def attack(root: Path, times: int, count: Count) -> None:
    """Reads everything with one hostile record at a time beside a good one."""
    fate: Counter[str] = Counter()
    (good,) = write(root / "results", Planted(name=GOOD))
    for seed in range(times):
        folder = root / "results/records/hostile"
        path = hostile(folder, random.Random(seed))
        plain = json.loads(path.read_bytes())
        if isinstance(plain, dict):
            attempt_seal(path)
        fate[_fate(path)] += 1
        try:
            everything(root / "results", root / f"out-{seed}")
        except Exception as error:
            raise AssertionError(f"record {seed}: {path.read_text()[:2000]}") from error
        shutil.rmtree(folder)
        shutil.rmtree(root / f"out-{seed}", ignore_errors=True)
    assert read_record(good).status == "ok"
    for name, number in sorted(fate.items()):
        count(name, number)


def attempt_seal(path: Path) -> None:
    """Gives the record a digest that holds, where its content can have one."""
    try:
        rewritten(path)
    except ValueError:
        return  # NaN or half a character, which no digest is of


def _fate(path: Path) -> str:
    try:
        return read_record(path).status
    except LatentbenchError:
        return "refused"


def test_hostile_records_cost_their_own_row(tmp_path: Path, record_property: Count) -> None:
    attack(tmp_path, 25, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_records_cost_their_own_row(
    tmp_path: Path, record_property: Count, request: pytest.FixtureRequest
) -> None:
    attack(tmp_path, int(request.config.getoption("--records", default=600)), record_property)
