"""Exports: folders of files, a Hugging Face model card, and runs of an experiment tracker.

A folder has one file per record, for SAEBench's readers or for Every Eval Ever. A card goes with weights and
configuration as sae-lens reads them and says what was measured. The tracker is trackio or wandb, whichever is installed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable
from latentbench.core.spec_model import Json
from latentbench.exchange import every_eval_ever, saebench
from latentbench.exchange.foreign import word
from latentbench.leaderboard.load import LoadedRecord, LoadedResults, newest, within
from latentbench.leaderboard.render.text import markdown, number
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.store.files import new_folder, write_json

TAGS = ("sparse-autoencoder", "interpretability", "sae-lens")


def card(record: Record, model: str, loading: str) -> str:
    """README.md: how to load it, every number with its interval, and what it was made from.

    No licence is stated: weights inherit obligations of model and texts that only the publisher knows.
    """
    parts = [
        _front(model),
        f"# {markdown(_title(record))}",
        f"A sparse autoencoder for `{model.replace('`', '')}`, written by latentbench {version('latentbench')}.",
        f"## Use\n\n```python\n{loading}\n```",
        "## Measured\n\n" + "\n".join(_table(record)),
        "Numbers are of this SAE alone (seed "
        + str(record.seed)
        + "); intervals are 95 %, over the units in the last column.",
        "## Made from\n\n```json\n" + json.dumps(_made_from(record), indent=1, ensure_ascii=True) + "\n```",
        f"Cell `{record.cell}`, written {record.created}. `record.json` is the record in full.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(model: str) -> str:
    """The hub's metadata; JSON strings are YAML strings, whatever they hold."""
    base = [f"base_model: {json.dumps(model)}"] if model.count("/") == 1 else []
    return "\n".join(["---", "library_name: sae_lens", *base, "tags:", *(f"- {tag}" for tag in TAGS), "---"])


def _title(record: Record) -> str:
    return f"{record.spec.name} {record.label}".rstrip()


def _table(record: Record) -> Iterator[str]:
    yield "| number | domain | value | 95 % interval | n |"
    yield "| :-- | :-- | --: | --: | --: |"
    for metric in record.metrics:
        if metric.value is not None:
            yield f"| {' | '.join(_cells(metric))} |"


def _cells(metric: MetricValue) -> Iterator[str]:
    params = ", ".join(f"{name} {value}" for name, value in sorted(metric.params.items()))
    yield markdown(f"{metric.id}@{metric.version}" + (f" ({params})" if params else ""))
    yield markdown(metric.domain or "")
    yield f"{number(metric.value, metric.unit)} {markdown(metric.unit)}"
    yield "" if metric.ci is None else f"{number(metric.ci.low, metric.unit)} – {number(metric.ci.high, metric.unit)}"
    yield "" if metric.n is None else f"{metric.n:,}"


def _made_from(record: Record) -> Json:
    kept = ("model", "layer", "layers", "dataset", "sae", "training")
    return {name: record.resolved[name] for name in kept if record.resolved.get(name) is not None} | {
        "seed": record.seed
    }


Tracker = Literal["trackio", "wandb"]


def publish(loaded: LoadedResults, sink: Tracker, project: str, suite: str | None = None) -> int:
    """Logs the newest records with numbers, one run each; returns how many. Raises NotAvailable and InvalidInput.

    Nothing secret is read or passed on: the tracker finds its own credentials, and `WANDB_MODE=offline` keeps it local.
    """
    try:
        tracker = importlib.import_module(sink)
    except ImportError:
        raise NotAvailable(f"{sink} is not installed: pip install {sink}") from None
    current, _ = newest(cell for cell in loaded.loaded if within(cell.record.spec.name, suite))
    records = [cell.record for cell in current if cell.record.status == "ok"]
    if not records:
        raise InvalidInput("there are no records with numbers to publish")
    for record in records:
        name = f"{record.spec.name}[{record.label}][{record.seed}]"
        try:
            tracker.init(project=project, name=name, config={"cell": record.cell, **record.resolved})
            tracker.log({f"{m.domain or 'run'}/{m.id}" + "".join(f",{k}={v}" for k, v in sorted(m.params.items())): m.value
                         for m in record.metrics if m.value is not None})  # fmt: skip
            tracker.finish()
        except Exception as error:  # whatever a tracker raises concerns its server or its login, not the results
            raise LatentbenchError(f"{sink} refused {name}: {type(error).__name__}: {str(error)[:300]}") from error
    return len(records)


FolderFormat = Literal["every-eval-ever", "saebench"]


def write_folder(loaded: LoadedResults, format: FolderFormat, output: Path, suite: str | None = None) -> int:
    """Writes the newest records with numbers to the new folder `output`; returns how many files. Raises InvalidInput."""
    current, _ = newest(cell for cell in loaded.loaded if within(cell.record.spec.name, suite))
    files = {name: data for cell in current if cell.record.status == "ok" for name, data in _files(cell, format)}
    if not files:
        raise InvalidInput("there are no records with numbers to export")
    with new_folder(output) as draft:
        for name, data in files.items():
            write_json(draft / name, data)
    return len(files)


def _files(cell: LoadedRecord, format: FolderFormat) -> Iterator[tuple[str, Json]]:
    record = cell.record
    start = f"{word(record.spec.name)}_{word(record.label) + '_' if record.label else ''}{record.cell[:12]}"
    if format == "every-eval-ever":
        yield f"{start}.json", every_eval_ever.log(cell)
        return
    for domain in record.comparability:
        if any(
            m.domain == domain and m.id.startswith(("explained_variance", "cross_entropy", "l0"))
            for m in record.metrics
        ):
            yield f"{start}_{word(domain)}_eval_results.json", saebench.write(record, domain)
