"""The result of record: one small JSON file per cell, and its per-document statistics beside it.

Everything the leaderboard shows is a pure function of these files. A number that could not be computed is
``null`` with a reason; NaN and infinity are never written.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.section import Json, Section

Status = Literal["ok", "failed", "timeout", "skipped"]


class Interval(Section):
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95
    method: str
    """How it was computed, e.g. `document bootstrap, expanded percentile`."""


class MetricValue(Section):
    """One number of one metric on one domain."""

    id: str
    """Metric and estimator, e.g. `explained_variance.centred`."""
    version: int
    """Version of the metric's definition; numbers of different versions are never ranked together."""
    domain: str | None = None
    """Evaluation domain; null for numbers that belong to the artifact itself."""
    value: float | None
    null_reason: str | None = None
    """Why the value is null."""
    unit: str
    higher_is_better: bool | None
    """Null where neither direction is better in itself (L0)."""
    n: int | None = None
    """Number of documents (or other independent units) behind the number."""
    ci: Interval | None = None
    params: dict[str, Json] = Field(default_factory=dict)
    """What distinguishes this number from others of the same id, e.g. `{"budget": 8}`."""


class SpecOrigin(Section):
    """Where a cell came from."""

    name: str
    path: str
    """Path of the spec file relative to the project."""
    digest: str
    """sha256 of the fully merged spec."""


class Failure(Section):
    """Why a cell has no numbers."""

    stage: str
    type: str
    message: str
    log: str | None = None
    """Path of the log, relative to the results folder."""


class ArtifactRef(Section):
    """A stored artifact a record refers to."""

    kind: str
    key: str
    bytes: int


class Cost(Section):
    """What the cell cost on the machine that ran it (not part of its identity)."""

    wall_seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds per stage kind; a stage shared by several cells is counted in full for each."""
    peak_memory_bytes: int | None = None
    """Largest memory of the process so far, which may have trained and measured other cells too."""
    training_memory_bytes: int | None = None
    """Of this SAE's training alone: weights, moments, gradients and what a step makes; null where nobody recorded it."""
    tokens_per_second: float | None = None
    """Of the SAE's own training steps, without the language model; null when it was not trained in this run."""


class Comparability(Section):
    """What must agree for two rows to be ranked together."""

    key: str
    fields: dict[str, Json]
    """The agreeing facts themselves, so that a reader sees why two rows are shown apart."""


class DocumentStatistics(Section):
    """The safetensors file of per-document sufficient statistics beside a record."""

    file: str
    sha256: str


class Import(Section):
    """Where numbers come from that latentbench did not measure."""

    tool: str
    """`saebench`, `sae_lens` or `lm_eval`."""
    version: str | None = None
    """The tool's version, where its file says so."""
    file: str
    """Name of the file that was read, without its folder."""
    sha256: str
    """Of that file's bytes."""
    entry: int = 0
    """Which of the file's results this is."""


class Record(Section):
    """One cell's result."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    cell: str
    """sha256 of everything that determines the numbers."""
    spec: SpecOrigin
    label: str
    """The matrix and case values of this cell, e.g. `sae.k=32`; empty without a matrix."""
    resolved: dict[str, Json]
    """The experiment in full: every field with its value, defaults included."""
    seed: int
    status: Status
    error: Failure | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    """Stage name to content key."""
    comparability: dict[str, Comparability] = Field(default_factory=dict)
    """Evaluation domain to comparability."""
    metrics: tuple[MetricValue, ...] = ()
    artifacts: tuple[ArtifactRef, ...] = ()
    documents: DocumentStatistics | None = None
    warnings: tuple[str, ...] = ()
    environment: dict[str, Json] = Field(default_factory=dict)
    cost: Cost = Cost()
    created: str
    """UTC, ISO 8601."""
    imported: Import | None = None
    """Set where the numbers were measured by another tool and read from its result file."""
