"""The finished cells that a reader means, and their experiments."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from harness.errors import InvalidInput, RefusedFile
from harness.leaderboard.load import load
from harness.leaderboard.select import select
from harness.project import Project
from harness.record import Record
from harness.sae.base import SparseAutoencoder
from harness.spec.experiment import Experiment
from harness.store.store import Store


def records_of(results: Path, wanted: str) -> tuple[Record, ...]:
    """The cells meant, one per seed. Raises InvalidInput for something unknown, RefusedFile where no single SAE is known."""
    records = tuple(cell.record for cell in select(load(results), wanted).cells)
    if any("sae" not in record.keys for record in records):
        raise RefusedFile(f"the record of {wanted} does not name one SAE that was measured")
    return records


def record_of(results: Path, wanted: str) -> Record:
    """The one cell meant. Raises InvalidInput when there are several seeds."""
    records = records_of(results, wanted)
    if len(records) > 1:
        seeds = ", ".join(str(record.seed) for record in records)
        raise InvalidInput(f"{wanted} means several SAEs; say which seed, e.g. {wanted}[0] (seeds: {seeds})")
    return records[0]


def experiment_of(record: Record) -> Experiment:
    """What was run. Raises RefusedFile when this version cannot read it."""
    try:
        return Experiment.model_validate_json(json.dumps(record.resolved), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedFile(f"this version cannot read the record's experiment: {where}: {first['msg']}") from None


def sae_of(record: Record, experiment: Experiment, project: Project) -> SparseAutoencoder:
    """The cell's SAE from the store, or from its source. Raises NotAvailable or RefusedFile."""
    from harness.execute.stored import load_stored

    section = experiment.section_at(experiment.sites[0])
    return load_stored(Store(project.store), record.keys["sae"], section, project.roots).sae
