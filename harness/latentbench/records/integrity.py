"""Does a record hold what was measured? What it says is a number only where this can be told.

A number with statistics must follow from them: the file beside the record is the one it vouches for, and the formula over
its sums gives the number. What has no statistics (costs, tallies, imported numbers) stands under the record's own digest,
as everything else in it does. The digest finds what happened by accident or by an editor; the statistics also find what
was altered together with its digest.
"""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from latentbench.core.errors import RefusedFile, StoreError
from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.metrics.recorded import estimators
from latentbench.records.numbers import Headings, Numbers
from latentbench.records.record import DocumentStatistics, Record
from latentbench.store.files import arrays_of, bytes_of

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

    numbers, sums = Numbers.of(record.metrics), _Sums(statistics)
    claims = _claims(record.metrics_section, numbers.headings)
    with np.errstate(all="ignore"):
        if all(_hold(alike, numbers, sums) for alike in claims.values()):
            return None
        each = sorted((claim for alike in claims.values() for claim in alike), key=attrgetter("place"))
        return next((said for claim in each if (said := _contradiction(claim, numbers, sums))), None)


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
        return documents is None or bool(_content(folder, documents))
    except (RefusedFile, OSError):
        return False


def read_statistics(folder: Path, documents: DocumentStatistics) -> Statistics:
    """The arrays [units] float64 beside a record. Raises RefusedFile where they are not those it vouches for."""
    try:
        arrays = arrays_of(_content(folder, documents), documents.file)
    except OSError as error:
        raise RefusedFile(f"{documents.file} cannot be read: {error.strerror or error}") from None
    except StoreError as error:
        raise RefusedFile(str(error)) from None
    if wrong := next((name for name, array in arrays.items() if array.dtype != "float64" or array.ndim != 1), None):
        raise RefusedFile(f"{documents.file}: {wrong} is not a float64 array [units]")
    return {name: array.astype("float64", copy=False) for name, array in arrays.items()}


def _content(folder: Path, documents: DocumentStatistics) -> bytes:
    """The bytes that a record vouches for, from the file beside it: read once, so that what is used is what was checked.

    Raises RefusedFile and OSError.
    """
    if Path(documents.file).name != documents.file:
        raise RefusedFile(f"it names statistics outside of its folder: {documents.file!r}")
    try:
        content = bytes_of(folder / documents.file, _MAX_STATISTICS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedFile(f"it names statistics outside of its folder: {documents.file!r}") from None
        if error.errno == errno.EFBIG:
            raise RefusedFile(f"{documents.file} is larger than statistics can be") from None
        raise
    if hashlib.sha256(content).hexdigest() != documents.sha256:
        raise RefusedFile(f"{documents.file} is not what the record vouches for (sha256 differs)")
    return content


class _Claim(NamedTuple):
    """A number that follows from statistics."""

    place: int
    where: str
    names: tuple[str, ...]
    estimator: Estimator


Claims = dict[tuple[int, int], list[_Claim]]


@lru_cache(maxsize=4096)
def _claims(metrics: str, titles: Headings) -> Claims:
    """Which of a record's numbers this installation knows statistics of, those of one formula together."""
    known, found = estimators(metrics), Claims()
    for place, title in enumerate(titles):
        if estimator := known.get((title.id, title.version, title.settings)):
            names = tuple(f"{title.domain}/{name}" for name in estimator.names(title.budget))
            claim = _Claim(place, f"{title.domain or ''}/{title.id}@{title.version}", names, estimator)
            found.setdefault((id(estimator.formula), len(names)), []).append(claim)
    return found


def _hold(claims: list[_Claim], numbers: Numbers, sums: _Sums) -> bool:
    """Whether numbers of one formula follow from their statistics, all of them from one evaluation."""
    import numpy as np

    statistics, counted = sums.statistics, numbers.pattern.n
    kept = [claim for claim in claims if numbers.value(claim.place) is not None]
    for claim in kept:
        lengths = {len(statistics[name]) if name in statistics else None for name in claim.names}
        if len(lengths) > 1 or None in lengths or counted[claim.place] not in (None, *lengths):
            return False
    said = np.array([numbers.values[claim.place] for claim in kept])
    inputs = zip(*([sums[name] for name in claim.names] for claim in kept), strict=True)
    given = claims[0].estimator.formula(*map(np.array, inputs)) if kept else said
    close = np.abs(given - said) <= np.maximum(_RELATIVE * np.maximum(np.abs(given), np.abs(said)), _ABSOLUTE)
    return bool(np.all(close))


def _contradiction(claim: _Claim, numbers: Numbers, sums: _Sums) -> str | None:
    """How a number contradicts its statistics; None for one that has no value."""
    value, n, statistics = numbers.value(claim.place), numbers.pattern.n[claim.place], sums.statistics
    if value is None:
        return None
    if missing := [name for name in claim.names if name not in statistics]:
        return f"{claim.where} is {value} without its statistics {missing[0]}"
    lengths = {len(statistics[name]) for name in claim.names}
    if len(lengths) > 1:
        return f"{claim.where} has statistics of different lengths"
    if n is not None and n not in lengths:
        return f"{claim.where} is said to be over {n} {claim.estimator.units} and has statistics of {lengths.pop()}"
    given = _evaluated(claim.estimator.formula, [sums[name] for name in claim.names])
    if given is not None and math.isclose(value, given, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
        return None
    return f"{claim.where} is {value} in the record and {given} from its statistics"


def _evaluated(formula: Callable[..., Array], sums: list[np.float64]) -> float | None:
    value = float(formula(*sums))
    return value if math.isfinite(value) else None


def _digest(plain: Mapping[str, Json]) -> str:
    return digest("record", dict(plain))
