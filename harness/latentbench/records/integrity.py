"""Does a record hold what was measured? What it says is a number only where this can be told.

A number with statistics must follow from them: the file beside the record is the one it vouches for, and the formula over
its sums gives the number. What has no statistics (costs, tallies, imported numbers) stands under the record's own digest,
as everything else in it does. The digest finds what happened by accident or by an editor; the statistics also find what
was altered together with its digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latentbench.core.errors import RefusedFile, StoreError
from latentbench.core.hashing import digest, file_digest
from latentbench.core.spec_model import Json
from latentbench.metrics.recorded import Number, estimators
from latentbench.metrics.value import MetricValue
from latentbench.records.record import DocumentStatistics, Record
from latentbench.store.files import read_arrays

if TYPE_CHECKING:
    import numpy as np

    from latentbench.metrics.base import Estimator
    from latentbench.statistics.arrays import Array, Statistics

_MAX_STATISTICS = 4 << 30
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
"""What the order of sums may change in a number."""


def sealed(record: Record) -> Json:
    """The record as it is written: JSON with the digest of all the rest."""
    plain = record.model_dump(mode="json", by_alias=True, exclude={"digest"})
    return {**plain, "digest": _digest(plain)}


def damage(record: Record, written: Mapping[str, Json], path: Path) -> str | None:
    """What is wrong with a record whose file at `path` says `written`, in one sentence; None where nothing is."""
    if record.digest is None:
        return "it has no digest, so nothing vouches for its numbers"
    if record.digest != _digest({name: value for name, value in written.items() if name != "digest"}):
        return "its digest does not hold: the file was altered after it was written"
    try:
        statistics = read_statistics(path.parent, record.documents) if record.documents else {}
    except RefusedFile as error:
        return str(error)
    if record.imported:
        return None  # other tools keep no statistics
    # Now that the statistics are known to be those it vouches for, a contradiction is one of the numbers.
    import numpy as np

    known, sums = estimators(record.metrics_section), _Sums(statistics)
    with np.errstate(all="ignore"):
        found = (_contradiction(known, metric, sums) for metric in record.metrics)
        return next((said for said in found if said), None)


class _Sums(dict[str, "np.float64"]):
    """Sums of statistics, each added up once although several numbers ask for it."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def __missing__(self, name: str) -> np.float64:
        total: np.float64 = self.statistics[name].sum()
        self[name] = total
        return total


def vouched(folder: Path, documents: DocumentStatistics | None) -> bool:
    """Whether the statistics beside a record are those it vouches for, by their bytes alone."""
    try:
        return documents is None or _file(folder, documents).is_file()
    except (RefusedFile, OSError):
        return False


def read_statistics(folder: Path, documents: DocumentStatistics) -> Statistics:
    """The arrays [units] float64 beside a record. Raises RefusedFile where they are not those it vouches for."""
    try:
        file = _file(folder, documents)
        arrays = read_arrays(file)
    except OSError as error:
        raise RefusedFile(f"{documents.file} cannot be read: {error.strerror or error}") from None
    except StoreError as error:
        raise RefusedFile(str(error)) from None
    if wrong := next((name for name, array in arrays.items() if array.dtype != "float64" or array.ndim != 1), None):
        raise RefusedFile(f"{file.name}: {wrong} is not a float64 array [units]")
    return {name: array.astype("float64", copy=False) for name, array in arrays.items()}


def _file(folder: Path, documents: DocumentStatistics) -> Path:
    """The file beside a record that has the bytes it vouches for. Raises RefusedFile and OSError."""
    file = folder / documents.file
    if Path(documents.file).name != documents.file or file.is_symlink():
        raise RefusedFile(f"it names statistics outside of its folder: {documents.file!r}")
    if file.stat().st_size > _MAX_STATISTICS:
        raise RefusedFile(f"{file.name} is larger than statistics can be")
    if file_digest(file) != documents.sha256:
        raise RefusedFile(f"{file.name} is not what the record vouches for (sha256 differs)")
    return file


def _contradiction(known: Mapping[Number, Estimator], metric: MetricValue, sums: _Sums) -> str | None:
    """How a number contradicts its statistics; None for one that this installation knows no statistics of."""
    estimator = known.get((metric.id, metric.version, metric.settings))
    if estimator is None or metric.value is None:
        return None
    where = f"{metric.domain or ''}/{metric.id}@{metric.version}"
    names = [f"{metric.domain}/{name}" for name in estimator.names(metric.budget)]
    if missing := [name for name in names if name not in sums.statistics]:
        return f"{where} is {metric.value} without its statistics {missing[0]}"
    lengths = {len(sums.statistics[name]) for name in names}
    if len(lengths) > 1:
        return f"{where} has statistics of different lengths"
    if metric.n is not None and metric.n not in lengths:
        return f"{where} is said to be over {metric.n} {estimator.units} and has statistics of {lengths.pop()}"
    given = _evaluated(estimator.formula, [sums[name] for name in names])
    if given is not None and math.isclose(metric.value, given, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
        return None
    return f"{where} is {metric.value} in the record and {given} from its statistics"


def _evaluated(formula: Callable[..., Array], sums: list[np.float64]) -> float | None:
    value = float(formula(*sums))
    return value if math.isfinite(value) else None


def _digest(plain: Mapping[str, Json]) -> str:
    return digest("record", dict(plain))
