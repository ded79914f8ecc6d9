"""Rows of the leaderboard as runs of an experiment tracker: trackio or wandb, whichever is installed."""

from __future__ import annotations

import importlib
from typing import Literal

from latentbench.errors import InvalidInput, LatentbenchError, NotAvailable
from latentbench.leaderboard.load import Results
from latentbench.leaderboard.table import newest, within

Sink = Literal["trackio", "wandb"]


def publish(loaded: Results, sink: Sink, project: str, suite: str | None = None) -> int:
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
