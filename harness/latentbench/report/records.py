"""The finished cells that a reader means, and their experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from latentbench.errors import InvalidInput, RefusedFile
from latentbench.leaderboard.load import load
from latentbench.leaderboard.select import select
from latentbench.project import Project
from latentbench.record import Record
from latentbench.sae.base import SparseAutoencoder
from latentbench.spec.experiment import Experiment
from latentbench.store.store import Store

if TYPE_CHECKING:
    from latentbench.execute.stored import Stored


def cells_of(results: Path, *wanted: str) -> tuple[Record, ...]:
    """The cells meant, one per seed. Raises InvalidInput for something unknown."""
    loaded = load(results)
    return tuple(cell.record for name in wanted for cell in select(loaded, name).cells)


def cell_of(results: Path, wanted: str, what: str = "cells") -> Record:
    """The one cell meant. Raises InvalidInput when there are several seeds of `what`."""
    side = select(load(results), wanted)
    if len(side.cells) > 1:
        seeds = ", ".join(str(cell.record.seed) for cell in side.cells)
        raise InvalidInput(f"{wanted} means several {what}; say which seed, e.g. {side.name}[0] (seeds: {seeds})")
    return side.cells[0].record


def records_of(results: Path, wanted: str) -> tuple[Record, ...]:
    """The cells meant, each with one SAE. Raises RefusedFile where no single SAE is known."""
    return tuple(_with_sae(record, wanted) for record in cells_of(results, wanted))


def record_of(results: Path, wanted: str) -> Record:
    """The one cell meant, which has one SAE. Raises InvalidInput when there are several seeds."""
    return _with_sae(cell_of(results, wanted, "SAEs"), wanted)


def experiment_of(record: Record) -> Experiment:
    """What was run. Raises RefusedFile when this version cannot read it."""
    try:
        return Experiment.model_validate_json(json.dumps(record.resolved), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedFile(f"this version cannot read the record's experiment: {where}: {first['msg']}") from None


def stored_sae(record: Record, experiment: Experiment, project: Project) -> Stored:
    """The cell's SAE with its options and bases. Raises NotAvailable or RefusedFile."""
    from latentbench.execute.stored import load_stored

    section = experiment.section_at(experiment.sites[0])
    return load_stored(Store(project.store), record.keys["sae"], section, project.roots)


def sae_of(record: Record, experiment: Experiment, project: Project) -> SparseAutoencoder:
    """The cell's SAE from the store, or from its source. Raises NotAvailable or RefusedFile."""
    return stored_sae(record, experiment, project).sae


def _with_sae(record: Record, wanted: str) -> Record:
    if "sae" not in record.keys:
        raise RefusedFile(f"the record of {wanted} does not name one SAE that was measured")
    return record
