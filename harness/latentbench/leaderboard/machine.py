"""What training cost on the machine that did it, as numbers of a table: next to the cost by formula, never ranked."""

from __future__ import annotations

from collections.abc import Iterator

from latentbench.record import MetricValue, Record

SPEED, MEMORY = "training.tokens_per_second", "training.memory"
ON_MACHINE = frozenset({SPEED, MEMORY})
"""Ids that stand in no record's metrics: other machines and loads give others."""


def on_machine(record: Record) -> Iterator[MetricValue]:
    """Tokens per second of the SAE's own steps, and the memory of its training in MiB, where they were recorded."""
    cost = record.cost
    if cost.tokens_per_second is not None:
        yield _value(SPEED, cost.tokens_per_second, "tokens/s")
    if cost.training_memory_bytes is not None:
        yield _value(MEMORY, cost.training_memory_bytes / 2**20, "MiB")


def _value(name: str, value: float, unit: str) -> MetricValue:
    return MetricValue(id=name, version=1, value=value, unit=unit, higher_is_better=None)
