"""The result of record: one small JSON file per cell, and its per-document statistics beside it.

Everything the leaderboard shows is a pure function of these files. A number that could not be computed is
`null` with a reason; NaN and infinity are never written. A record is checked whole when it is read, whatever its
readers use of it: a field of another shape is one refused file and not a traceback in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from latentbench.core.hashing import canonical
from latentbench.core.spec_model import Json, SpecModel
from latentbench.metrics.value import MetricValue
from latentbench.records.numbers import AsNumbers

Status = Literal["ok", "failed", "timeout", "skipped", "damaged"]
"""How a cell ended. `damaged` is what readers make of a record that does not hold what was measured."""


class SpecOrigin(SpecModel):
    """Where a cell came from."""

    name: str
    path: str
    """Path of the spec file relative to the project."""
    digest: str
    """sha256 of the fully merged spec."""


class Failure(SpecModel):
    """Why a cell has no numbers."""

    stage: str
    type: str
    message: str
    log: str | None = None
    """Path of the log, relative to the results folder."""


class ArtifactRef(SpecModel):
    """A stored artifact a record refers to."""

    kind: str
    key: str
    bytes: int


class RunCost(SpecModel):
    """What the cell cost on the machine that ran it (not part of its identity)."""

    wall_seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds per stage kind; a stage shared by several cells is counted in full for each."""
    peak_memory_bytes: int | None = None
    """Largest memory of the process so far, which may have trained and measured other cells too."""
    training_memory_bytes: int | None = None
    """What this SAE's training alone took: weights, moments, gradients and what a step makes; null where nobody recorded it."""
    tokens_per_second: float | None = None
    """Speed of the SAE's own training steps, without the language model; null when it was not trained in this run."""


class Comparability(SpecModel):
    """What must agree for two rows to be ranked together."""

    key: str
    fields: dict[str, Json]
    """The agreeing facts themselves, so that a reader sees why two rows are shown apart."""


class DocumentStatistics(SpecModel):
    """The safetensors file of per-document sufficient statistics beside a record."""

    file: str
    sha256: str


class Import(SpecModel):
    """Where numbers come from that latentbench did not measure."""

    tool: str
    """`saebench`, `sae_lens` or `lm_eval`."""
    version: str | None = None
    """The tool's version, where its file says so."""
    file: str
    """Name of the file that was read, without its folder."""
    sha256: str
    """Digest of that file's bytes."""
    entry: int = 0
    """Which of the file's results this is."""


class Checkout(SpecModel):
    """The state of the code that computed a record."""

    commit: str
    dirty: bool
    """Whether files differed from the commit."""


class Environment(SpecModel):
    """The machine and the versions that computed a record; empty for imported ones."""

    python: str | None = None
    platform: str | None = None
    processor: str | None = None
    device: str | None = None
    devices: int | None = None
    """How many of them train one SAE."""
    threads: int | None = None
    """Threads of each process."""
    packages: dict[str, str] = Field(default_factory=dict)
    git: Checkout | None = None


Map = dict[str, Json]


# What follows is lenient where a spec is strict: a record may be of another version or tool, so unknown keys stay, and only the
# shapes that its readers rely on are demanded.
class _EvaluationData(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)
    eval: dict[str, Map] | None = None


class _Steering(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)
    scale: float | Literal["auto"] | None = None


class _Resolved(BaseModel):
    """The shapes that readers of a resolved experiment rely on, whichever version or tool wrote it."""

    model_config = ConfigDict(extra="allow", defer_build=True)
    model: str | Map | None = None
    layer: int | str | Map | None = None
    layers: list[int | str | Map] | None = None
    dataset: _EvaluationData | None = None
    sae: Map | None = None
    steering: _Steering | None = None
    flow: Map | None = None
    training: Map | None = None
    metrics: list[Map] | None = None
    resources: Map | None = None


def _resolved(value: Map) -> Map:
    try:
        _Resolved.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return value


def _moment(value: str) -> str:
    datetime.fromisoformat(value)
    return value


class Record(SpecModel):
    """One cell's result."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    cell: str
    """sha256 of everything that determines the numbers."""
    spec: SpecOrigin
    label: str
    """The matrix and case values of this cell, e.g. `sae.k=32`; empty without a matrix."""
    resolved: Annotated[Map, AfterValidator(_resolved)]
    """The experiment in full: every field with its value, defaults included."""
    seed: int
    status: Status
    error: Failure | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    """Stage name to content key."""
    comparability: dict[str, Comparability] = Field(default_factory=dict)
    """Evaluation domain to comparability."""
    metrics: Annotated[Sequence[MetricValue], AsNumbers] = ()
    artifacts: tuple[ArtifactRef, ...] = ()
    documents: DocumentStatistics | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What there is to know of the texts as they were read, and nothing to be wary of: shares of mixtures, what was left out."""
    environment: Environment = Environment()
    cost: RunCost = RunCost()
    created: Annotated[str, AfterValidator(_moment)]
    """UTC, ISO 8601."""
    imported: Import | None = None
    """Set where the numbers were measured by another tool and read from its result file."""
    digest: str | None = None
    """sha256 of everything else in the file (`harness/latentbench/records/results.py`); null until it is written."""

    @property
    def compared(self) -> dict[str, Comparability]:
        """Comparability of the domains that it has numbers on; all where it has none.

        A domain that was only read for something else, as that by which doses are told, sets no rows apart.
        """
        measured = {value.domain for value in self.metrics}
        return {d: agreed for d, agreed in self.comparability.items() if d in measured} or self.comparability

    @property
    def metrics_section(self) -> str:
        """The `metrics` of the resolved experiment as canonical JSON."""
        return canonical(self.resolved.get("metrics") or [])

    def damaged(self, reason: str) -> Record:
        """The record as readers get it when it does not hold what was measured: without numbers, with the reason."""
        error = Failure(stage="record", type="DamagedRecord", message=reason)
        return self.model_copy(update={"status": "damaged", "metrics": (), "documents": None, "error": error})
