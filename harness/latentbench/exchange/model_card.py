"""A Hugging Face model folder: weights and configuration as sae-lens reads them, and a card with what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version

from latentbench.leaderboard.render.text import markdown, number
from latentbench.record import MetricValue, Record
from latentbench.section import Json

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
