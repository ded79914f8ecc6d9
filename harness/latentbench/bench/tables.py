"""Tables of many records: time and memory of what a reader waits for, with nothing kept from before and with everything.

The records are generated, in the number asked for: three seeds of every row, about a hundred numbers each, over documents and
over latents, whose statistics are those of a planted SAE with noise of their own. Every one passes the check of a record that
was measured. Each task runs in a process of its own, since a process's peak never falls; the page that it made is then opened
in a browser, where there is one (harness/latentbench/bench/browser.py).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from pydantic_core import to_json
from safetensors.numpy import save

from latentbench.bench.browser import PageTimes, page_times
from latentbench.core.hashing import canonical, digest, file_digest
from latentbench.core.resources import high_water, processors
from latentbench.core.spec_model import Json
from latentbench.metrics.base import BUDGETED, Estimator
from latentbench.metrics.recorded import estimators
from latentbench.records.results import RECORDS
from latentbench.statistics.arrays import Array
from latentbench.statistics.intervals import document_interval

SEEDS, BUDGETS, DOMAINS = 3, (8, 16), ("general", "chemistry", "code")
DOCUMENTS, LATENTS = 128, 64
_ROWS_OF_A_SPEC = 50
_METRICS: list[Json] = [
    {"metric": "cross_entropy", "budgets": list(BUDGETS)},
    {"metric": "explained_variance", "budgets": list(BUDGETS)},
    {"metric": "l0"},
    {"metric": "autointerp", "budgets": list(BUDGETS)},
]


@dataclass(frozen=True)
class Spent:
    """What a task took once."""

    seconds: float
    cpu_seconds: float
    """Of the process and of those it started, whatever else the machine did."""
    peak_bytes: int
    """Of the process, or of those that work for it before, counted as large as the largest of them all at once."""


@dataclass(frozen=True)
class TableTiming:
    """What one task took: with nothing kept from before (cold), then once more (warm)."""

    task: str
    cold: Spent | None
    """None where a reader never waits for it: a run ends among records that are known but for its own."""
    warm: Spent
    written_bytes: int


@dataclass(frozen=True)
class TablesReport:
    """All of it."""

    records: int
    tasks: tuple[TableTiming, ...]
    browser: PageTimes | None
    """None without a browser."""


def run(records: int = 10_000, seed: int = 0, progress: Callable[[str], object] = lambda _: None) -> TablesReport:
    """Generates records in a temporary folder, measures the tables that are made of them, and opens the page."""
    with TemporaryDirectory() as folder:
        results, page_file = Path(folder) / "results", Path(folder) / "page.html"
        progress(f"generating {records:,} records")
        generate(results, records, seed)
        tasks = tuple(measure(task, results, Path(folder) / "store", page_file, progress) for task in TASKS)
        progress("page, in a browser")
        return TablesReport(records, tasks, page_times(page_file))


def page(results: Path, store: Path) -> str:
    """The page, with all its numbers, intervals and tests."""
    from latentbench.leaderboard.api import leaderboard

    return leaderboard(results, "html", store=store)


def table(results: Path, store: Path) -> str:
    """The terminal's table."""
    from latentbench.leaderboard.api import leaderboard

    return leaderboard(results, "terminal", store=store)


def after_run(results: Path, store: Path) -> str:
    """What a run does at its end, whether it had anything to do or not."""
    from latentbench.leaderboard.api import write_leaderboard_md

    return write_leaderboard_md(results, store).read_text("utf-8")


Task = Callable[[Path, Path], str]
PAGE, AFTER_RUN = "page", "end of a run"
TASKS: Mapping[str, Task] = {PAGE: page, "terminal table": table, AFTER_RUN: after_run}


def measure(
    task: str, results: Path, store: Path, page_file: Path, progress: Callable[[str], object] = lambda _: None
) -> TableTiming:
    """A task in fresh processes, cold and then warm. The page is left in a file."""
    if task != AFTER_RUN:
        shutil.rmtree(store, ignore_errors=True)
    taken, written = [], 0
    for state in ("cold", "warm"):
        if task == AFTER_RUN and state == "cold":
            # Its table is another than the terminal's, of the same records: made once, and then made again at every end.
            after_run(results, store)
            continue
        progress(f"{task}, {state}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            spent, written = pool.submit(_measured, task, results, store, page_file).result()
        taken.append(spent)
    return TableTiming(task, taken[0] if len(taken) > 1 else None, taken[-1], written)


def _measured(task: str, results: Path, store: Path, page_file: Path) -> tuple[Spent, int]:
    start, before, alone = perf_counter(), _cpu_seconds(), high_water()
    content = TASKS[task](results, store).encode()
    seconds, cpu, others = perf_counter() - start, _cpu_seconds() - before, getrusage(RUSAGE_CHILDREN)
    if task == PAGE:
        page_file.write_bytes(content)
    # Other processes are done before this one begins with the table.
    together = alone + processors() * others.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Spent(seconds, cpu, max(high_water(), together)), len(content)


def _cpu_seconds() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def generate(results: Path, records: int, seed: int = 0) -> None:
    """Writes so many records with their statistics, in several processes. The same seed gives the same bytes."""
    rows = -(-records // SEEDS)
    shares = [range(start, min(rows, start + _ROWS_OF_A_SPEC)) for start in range(0, rows, _ROWS_OF_A_SPEC)]
    if len(shares) == 1:
        _generate(results, records, seed, shares[0])
        return
    with ProcessPoolExecutor(min(processors(), len(shares)), mp_context=get_context("spawn")) as pool:
        for made in [pool.submit(_generate, results, records, seed, share) for share in shares]:
            made.result()


def _generate(results: Path, records: int, seed: int, rows: range) -> None:
    numbers, world, halves = _planned(seed)
    for row in rows:
        error = 0.05 + 0.3 * np.random.default_rng([seed, row]).random()
        for own_seed in range(min(SEEDS, records - row * SEEDS)):
            arrays = _statistics(world, error, np.random.default_rng([seed, row, own_seed]))
            _write(results, row, own_seed, _values(numbers, arrays, halves), arrays)


@cache
def _planned(seed: int) -> tuple[list[Number], dict[str, dict[str, Array]], list[float]]:
    """What all records have in common: numbers, documents, and half the widths of intervals."""
    numbers, rng = list(_numbers()), np.random.default_rng(seed)
    world = {domain: _documents(rng) for domain in DOMAINS}
    return numbers, world, _halves(numbers, _statistics(world, 0.2, rng))


Number = tuple[str, Estimator, int | None]
"""Domain, estimator and budget of a number."""


def _numbers() -> Iterator[Number]:
    known = estimators(canonical(_METRICS))
    for domain in DOMAINS:
        for (id, _, _), estimator in known.items():
            if estimator.paired or domain == DOMAINS[0]:  # latents are explained on one domain
                alone = estimator.shared or id.partition(".")[0] in ("l0", "left_out")
                yield from ((domain, estimator, budget) for budget in ((None,) if alone else (None, *BUDGETS)))


def _documents(rng: np.random.Generator) -> dict[str, Array]:
    """What is the same for every SAE: sums per document."""
    tokens = np.round(rng.lognormal(4.5, 0.5, DOCUMENTS)) + 5
    clean, variance = rng.normal(3, 0.3, DOCUMENTS), tokens * 128 * rng.gamma(20, 1 / 20, DOCUMENTS)
    return {
        "tokens": tokens,
        "massive": np.zeros(DOCUMENTS),
        "named": np.ones(DOCUMENTS),
        "predictions": tokens + 1,
        "total_variance": variance,
        "ce_clean": (tokens + 1) * clean,
        "ce_zero": (tokens + 1) * (clean + 5),
        "ce_mean": (tokens + 1) * (clean + 4),
        "kl_zero": (tokens + 1) * 5.0,
        "kl_mean": (tokens + 1) * 4.0,
    }


def _statistics(world: Mapping[str, Mapping[str, Array]], error: float, rng: np.random.Generator) -> dict[str, Array]:
    """All arrays of a record whose SAE loses a share `error` of the variance."""
    found: dict[str, Array] = {}
    for domain, shared in world.items():
        found |= {f"{domain}/{name}": array for name, array in shared.items()}
        for budget in (None, *BUDGETS):
            lost = error * (1 + 2 / (budget or 32)) * np.exp(0.05 * rng.normal(size=DOCUMENTS))
            own = {
                "squared_error": shared["total_variance"] * lost,
                "ce_sae": shared["ce_clean"] + shared["predictions"] * 1.5 * lost,
                "kl_sae": shared["predictions"] * lost,
                "l0": shared["tokens"] * (budget or 32) * (1 + 0.01 * rng.normal(size=DOCUMENTS)),
            }
            found |= {f"{domain}/{_at(name, budget)}": array for name, array in own.items()}
    return found | dict(_latents(error, rng))


def _latents(error: float, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Per latent how well its explanation is told from others, and how often it was asked for."""
    for budget in (None, *BUDGETS):
        for name in _of_latents():
            scored = name.endswith(("_tpr", "_tnr", "_auroc"))
            array = rng.beta(8 * (1 - error), 3, LATENTS) if scored else np.ones(LATENTS)
            yield f"{DOMAINS[0]}/{_at(name, budget)}", array


@cache
def _of_latents() -> tuple[str, ...]:
    return tuple(sorted({name for _, one, _ in _numbers() if not one.paired for name in one.inputs}))


def _at(name: str, budget: int | None) -> str:
    return name if budget is None else f"{name}{BUDGETED}{budget}"


def _inputs(number: Number, arrays: Mapping[str, Array]) -> list[Array]:
    domain, estimator, budget = number
    return [arrays[f"{domain}/{name}"] for name in estimator.names(budget)]


def _halves(numbers: list[Number], arrays: Mapping[str, Array]) -> list[float]:
    """Half the width of each number's interval for one record, which all others are given: only values follow from statistics."""
    found = (document_interval(number[1].formula, np.stack(_inputs(number, arrays), axis=1)) for number in numbers)
    return [(bounds.high - bounds.low) / 2 if bounds else 0.0 for bounds in found]


def _values(numbers: list[Number], arrays: Mapping[str, Array], halves: list[float]) -> list[Json]:
    sums = {name: array.sum() for name, array in arrays.items()}
    return [_value(number, sums, half) for number, half in zip(numbers, halves, strict=True)]


def _value(number: Number, sums: Mapping[str, np.float64], half: float) -> Json:
    domain, estimator, budget = number
    with np.errstate(all="ignore"):
        value = float(estimator.formula(*(sums[f"{domain}/{name}"] for name in estimator.names(budget))))
    units = estimator.units.removesuffix("s")
    return {
        "id": estimator.id,
        "version": estimator.version,
        "domain": domain,
        "value": value,
        "null_reason": None,
        "unit": estimator.unit,
        "higher_is_better": estimator.higher_is_better,
        "n": DOCUMENTS if estimator.paired else LATENTS,
        "ci": {
            "low": value - half,
            "high": value + half,
            "level": 0.95,
            "method": f"{units} bootstrap, expanded percentile",
        },
        "params": {**estimator.params, **({} if budget is None else {"budget": budget})},
    }


def _write(results: Path, row: int, seed: int, values: list[Json], arrays: Mapping[str, Array]) -> None:
    spec, label = f"generated/s{row // _ROWS_OF_A_SPEC}", f"sae.k={row % _ROWS_OF_A_SPEC}"
    cell = digest("cell", [spec, label, seed])
    path = results / RECORDS / spec / f"{label}-seed{seed}-{cell[:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    sidecar = path.with_suffix(".safetensors")
    # Not flushed to disk one by one, as results are: nobody mourns these.
    sidecar.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    plain = _plain(spec, label, seed, cell, values) | {
        "documents": {"file": sidecar.name, "sha256": file_digest(sidecar)}
    }
    sealed = {**plain, "digest": digest("record", plain)}
    path.write_bytes(to_json(sealed, indent=1) + b"\n")  # as large as a record is, in a tenth of the time


def _plain(spec: str, label: str, seed: int, cell: str, values: list[Json]) -> dict[str, Json]:
    facts = {
        domain: {"documents": DOCUMENTS, "context": 128, "model": "m" * 64, "domain": domain} for domain in DOMAINS
    }
    return {
        "schema": 1,
        "cell": cell,
        "spec": {"name": spec, "path": f"specs/{spec}.yaml", "digest": digest("spec", spec)},
        "label": label,
        "resolved": {
            "model": {"adapter": "pocket", "dtype": "float32"},
            "layer": {"index": 3, "point": "resid_post"},
            "dataset": {"eval": {domain: {"adapter": "pocket", "documents": DOCUMENTS} for domain in DOMAINS}},
            "sae": {"variant": "topk", "width": 4096, "k": int(label.rpartition("=")[2])},
            "training": {"batch": 4096, "lr": 0.0008, "budget": None},
            "metrics": _METRICS,
            "resources": {"gpus": 0},
        },
        "seed": seed,
        "status": "ok",
        "error": None,
        "keys": {"tokens": "t" * 64, "sae": cell},
        "comparability": {
            domain: {"key": digest("comparability", fields), "fields": fields} for domain, fields in facts.items()
        },
        "metrics": values,
        "artifacts": [{"kind": "sae", "key": cell, "bytes": 2_100_000}],
        "warnings": [],
        "environment": {
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "device": "cpu",
            "packages": {"torch": "2.9.1"},
        },
        "cost": {"wall_seconds": {"train": 40.0 + seed, "evaluate": 8.25}, "tokens_per_second": 50_000.0 + seed},
        "created": "2026-01-01T00:00:00+00:00",
    }
