"""Which records a reader means by `quickstart/topk[sae.k=8][0]`, a cell id or a path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import InvalidInput
from latentbench.core.text import visible
from latentbench.leaderboard.load import LoadedRecord, LoadedResults, age_of, load_one, newest

_ADDRESS = re.compile(r"^(?P<name>[^\[\]]+)(?P<parts>(\[[^\[\]]*\])*)$")
_CELL = re.compile(r"^[0-9a-f]{6,64}$")


@dataclass(frozen=True)
class Side:
    """One or several runs of one spec and label, by seed."""

    name: str
    cells: tuple[LoadedRecord, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(cell.record.seed for cell in self.cells)


def select(results: LoadedResults, wanted: str) -> Side:
    """The runs meant. Raises InvalidInput for something unknown or ambiguous, with the nearest names."""
    if wanted.endswith(".json"):
        return _by_path(results, wanted)
    if _CELL.match(wanted):
        matching = [cell for cell in results.loaded if cell.record.cell.startswith(wanted)]
        if matching:
            return _one_cell(matching, wanted)
    return _by_name(results, wanted)


def _by_path(results: LoadedResults, wanted: str) -> Side:
    path = next((p for p in (Path(wanted), results.root / wanted) if p.is_file()), None)
    if path is None:
        raise InvalidInput(f"there is no record {visible(wanted)}")
    same = next((c for c in results.loaded if (results.root / c.path).resolve() == path.resolve()), None)
    return _side([same or load_one(path, path.parent)], wanted)


def _one_cell(matching: Sequence[LoadedRecord], wanted: str) -> Side:
    if len({cell.record.cell for cell in matching}) > 1:
        raise InvalidInput(f"{wanted} is the start of several cells: {_listed(_address(c) for c in matching)}")
    return _side([max(matching, key=age_of)], wanted)


def _by_name(results: LoadedResults, wanted: str) -> Side:
    current, _ = newest(results.loaded)
    found = _ADDRESS.match(wanted)
    name = found["name"] if found else wanted
    ours = [cell for cell in current if cell.record.spec.name == name]
    if not ours or not found:
        names = sorted({cell.record.spec.name for cell in current})
        raise InvalidInput(f"there are no records of {visible(wanted)}{_nearest(name, names)}")
    parts = re.findall(r"\[([^\[\]]*)\]", found["parts"])
    return _measured(_narrowed(ours, parts, wanted), wanted)


def _narrowed(cells: list[LoadedRecord], parts: list[str], wanted: str) -> list[LoadedRecord]:
    """The cells of one label, and of one seed where it is given."""
    labels = sorted({cell.record.label for cell in cells})
    label = parts[0] if parts and parts[0] in labels else None
    rest = parts[1:] if label is not None else parts
    if label is None and len(labels) == 1:
        label = labels[0]
    if label is None or len(rest) > 1:
        raise InvalidInput(f"{visible(wanted)} could be several rows; say one of {_listed(_rows(cells))}")
    chosen = [cell for cell in cells if cell.record.label == label]
    if not rest:
        return chosen
    seed = rest[0].removeprefix("seed=")
    exact = [cell for cell in chosen if str(cell.record.seed) == seed]
    if not exact:
        offered = ", ".join(sorted({str(cell.record.seed) for cell in chosen}, key=int))
        raise InvalidInput(
            f"{visible(wanted)}: {visible(rest[0])!r} is neither a label nor a seed there (seeds: {offered})"
        )
    return exact


def _measured(cells: list[LoadedRecord], wanted: str) -> Side:
    ok = [cell for cell in cells if cell.record.status == "ok"]
    if not ok:
        raise InvalidInput(f"{visible(wanted)} has no numbers: {', '.join(sorted({_ended(c) for c in cells}))}")
    return _side(sorted(ok, key=lambda cell: cell.record.seed), wanted)


def _side(cells: list[LoadedRecord], wanted: str) -> Side:
    if cells[0].record.status != "ok":
        raise InvalidInput(f"{visible(wanted)} has no numbers: {_ended(cells[0])}")
    record = cells[0].record
    name = f"{record.spec.name}[{record.label}]" if record.label else record.spec.name
    return Side(f"{name}[{record.seed}]" if len(cells) == 1 else name, tuple(cells))


def _ended(cell: LoadedRecord) -> str:
    """How a run without numbers ended; of a damaged record also what is wrong, since no log says it."""
    record = cell.record
    return (
        f"damaged ({visible(record.error.message)})" if record.status == "damaged" and record.error else record.status
    )


def _rows(cells: list[LoadedRecord]) -> list[str]:
    return sorted({f"{cell.record.spec.name}[{cell.record.label}]" for cell in cells})


def _address(cell: LoadedRecord) -> str:
    return f"{cell.record.spec.name}[{cell.record.label}][{cell.record.seed}]"


def _listed(names: Iterable[str]) -> str:
    shown = sorted(set(names))
    return visible(", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else ""))


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    return f"; there are {visible(', '.join(close))}" if close else "; there are no records at all"
