"""Synthetic results: planted SAEs whose per-document statistics are drawn, with records that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentbench.core.hashing import digest, file_digest
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.reconstruction.cross_entropy import CrossEntropy
from latentbench.reconstruction.error_metrics import ExplainedVariance
from latentbench.reconstruction.sparsity_and_cost import L0
from latentbench.records.integrity import sealed
from latentbench.records.record import Comparability, DocumentStatistics, Failure, Record, RunCost, SpecOrigin, Status
from latentbench.store.files import write_arrays, write_json

METRICS = (CrossEntropy(), ExplainedVariance(), L0())
DOMAINS = ("general", "chemistry")
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">\u2028\x1b[31m|`*_<!--"


@dataclass(frozen=True)
class Planted:
    """One cell to write; `error` is the share of variance the SAE loses."""

    name: str = "quickstart/topk"
    label: str = ""
    seed: int = 0
    l0: float = 16.0
    error: float = 0.2
    noise: float = 0.05
    documents: int = 60
    status: Status = "ok"
    created: str = "2026-01-01T00:00:00+00:00"
    domains: tuple[str, ...] = DOMAINS
    dirty: bool = False
    message: str = "the loss became NaN at step 12"
    facts: Mapping[str, Any] = field(default_factory=dict)
    sae: Mapping[str, Any] = field(default_factory=lambda: {"variant": "topk", "width": 1024, "k": 16})
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the `training` section beside the usual ones."""
    warnings: tuple[str, ...] = ()
    speed: float | None = None
    memory: int | None = None
    """What training cost on its machine."""
    adapter: str = "pocket"
    """Of the language model."""
    draw: int | None = None
    """Seed of the SAE's own noise; default: derived from name, label and seed."""


def statistics(planted: Planted, domain: str) -> dict[str, np.ndarray]:
    """Per-document statistics; documents are the same for all cells, the SAE's errors are its own."""
    world = np.random.default_rng([planted.documents, sum(map(ord, domain))])
    own = np.random.default_rng(planted.draw if planted.draw is not None else int(_cell(planted)[:8], 16))
    n = planted.documents
    tokens = np.round(world.lognormal(4.5, 0.5, n)) + 5
    difficulty, clean = world.lognormal(0, 0.3, n), world.normal(3, 0.3, n)
    variance = tokens * 128 * world.gamma(20, 1 / 20, n)
    worse = 1.5 if domain != "general" else 1.0
    lost = planted.error * worse * difficulty * np.exp(planted.noise * own.normal(size=n))
    predictions = tokens + 1
    sae = clean + 1.5 * lost
    return {
        "tokens": tokens,
        "elements": tokens * 128,
        "predictions": predictions,
        "squared_norm": variance * 1.2,
        "total_variance": variance,
        "squared_error": variance * lost,
        "residual_variance": variance * lost * 0.98,
        "l0": tokens * planted.l0 * (1 + 0.01 * own.normal(size=n)),
        "ce_clean": predictions * clean,
        "ce_sae": predictions * sae,
        "ce_zero": predictions * (clean + 5),
        "ce_mean": predictions * (clean + 4),
        "kl_sae": predictions * lost,
        "kl_zero": predictions * 5.0,
        "kl_mean": predictions * 4.0,
    }


def record(planted: Planted) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of a planted cell and the arrays beside it, keyed by the domain and statistic."""
    ok = planted.status == "ok"
    measured = {domain: statistics(planted, domain) for domain in planted.domains} if ok else {}
    dead = [
        MetricValue(
            id="dead_fraction",
            version=1,
            domain=domain,
            value=round(planted.error / 10, 4),
            unit="fraction",
            higher_is_better=False,
            n=planted.documents,
            params={"tokens": 30000},
        )
        for domain in measured
    ]
    made = Record(
        cell=_cell(planted),
        spec=SpecOrigin(name=planted.name, path=f"specs/{planted.name}.yaml", digest=digest("spec", planted.name)),
        label=planted.label,
        resolved=_resolved(planted),
        seed=planted.seed,
        status=planted.status,
        error=None if ok else Failure(stage="train", type="CellFailed", message=planted.message, log="logs/a.log"),
        keys={"tokens": "t" * 64, "sae": _cell(planted)},
        comparability={domain: _comparability(planted, domain) for domain in measured},
        metrics=(*metric_values(METRICS, measured), *dead),
        warnings=planted.warnings,
        environment={
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "device": "cpu",
            "packages": {"torch": "2.13.0"},
            "git": {"commit": "0123456789abcdef", "dirty": planted.dirty},
        },
        cost=RunCost(
            wall_seconds={"train": 41.5, "evaluate": 8.25},
            peak_memory_bytes=1_200_000_000,
            training_memory_bytes=planted.memory,
            tokens_per_second=planted.speed,
        ),
        created=planted.created,
    )
    return made, {f"{d}/{name}": array for d, found in measured.items() for name, array in found.items()}


def write(results: Path, *cells: Planted) -> list[Path]:
    """Writes records and statistics where the harness would."""
    return [_write(results, planted) for planted in cells]


def rewritten(path: Path, **changes: Any) -> None:
    """Changes fields of a record as whoever writes one would: its digest holds."""
    plain = {**json.loads(path.read_text()), **changes}
    plain.pop("digest", None)
    path.write_text(json.dumps(plain | {"digest": digest("record", plain)}), encoding="utf-8")


def _write(results: Path, planted: Planted) -> Path:
    made, arrays = record(planted)
    path = results / "records" / planted.name / f"seed{planted.seed}-{made.cell[:12]}.json"
    if arrays:
        sidecar = path.with_suffix(".safetensors")
        write_arrays(sidecar, dict(arrays))
        made = made.model_copy(update={"documents": DocumentStatistics(file=sidecar.name, sha256=file_digest(sidecar))})
    write_json(path, sealed(made))
    return path


def _cell(planted: Planted) -> str:
    parts = [planted.name, planted.label, planted.seed, planted.error, planted.l0, planted.created, planted.documents]
    return digest("cell", [*parts, dict(planted.sae), dict(planted.facts)])


def _comparability(planted: Planted, domain: str) -> Comparability:
    facts = {
        "model": {"adapter": "pocket", "sha256": "a" * 64},
        "layer": "3.resid_post",
        "documents": {"domain": domain, "documents": planted.documents},
        "context": 128,
        **planted.facts,
    }
    return Comparability(key=digest("comparability", facts), fields=facts)


def _resolved(planted: Planted) -> dict[str, Any]:
    return {
        "model": {"adapter": planted.adapter, "dtype": "float32"},
        "layer": {"index": 3, "point": "resid_post"},
        "dataset": {
            "train": {"adapter": "pocket", "domain": "general", "tokens": 200_000},
            "eval": {domain: {"adapter": "pocket", "documents": planted.documents} for domain in planted.domains},
        },
        "sae": dict(planted.sae),
        "training": {"batch": 4096, "lr": 0.0008, **planted.training},
        "metrics": [metric.plain() for metric in METRICS],
        "resources": {"gpus": 0},
    }
