"""Records become a board: rows over seeds, groups of rows measured alike, columns, and the short table among them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from latentbench.core.hashing import canonical
from latentbench.core.protocols import model_name
from latentbench.core.spec_model import Json
from latentbench.leaderboard.board import (
    Badge,
    Board,
    Column,
    Fact,
    Row,
    RowGroup,
    RowValues,
    Value,
    columns_of,
    number_of,
    ranked,
)
from latentbench.leaderboard.evidence import Ends, StatisticsReader, units_of
from latentbench.leaderboard.inference import verdicts_of
from latentbench.leaderboard.load import (
    ON_MACHINE,
    UNMEASURED,
    LoadedRecord,
    LoadedResults,
    RowKey,
    age_of,
    group_key,
    newest,
    on_small_model,
    row_key,
    within,
)
from latentbench.metrics.recorded import current_versions
from latentbench.records.numbers import Headings
from latentbench.records.record import Record


def merged_groups(records: Iterable[Record]) -> dict[str, str]:
    """Each record's own key to that of its group: records that share a domain and agree on all they share.

    Within a group every domain has one key, so each column can be ranked; a row that was not measured on a domain is
    blank there. Records with most domains come first, and one that fits several groups joins the first.
    """
    domains = {group_key(r): {d: agreed.key for d, agreed in r.compared.items()} for r in records}
    groups: list[tuple[dict[str, str], list[str]]] = []
    # In an order of their own, so that the order in which files were read does not decide who stands with whom.
    for own in sorted(domains, key=lambda key: (-len(domains[key]), key)):
        fits = (g for g in groups if domains[own].items() & g[0].items() and _agree(domains[own], g[0]))
        home = next(fits, None)
        if home is None:
            groups.append(home := ({}, []))
        home[0].update(domains[own])
        home[1].append(own)
    return {own: canonical(keys) if keys else UNMEASURED for keys, members in groups for own in members}


def _agree(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    return all(theirs.get(domain, key) == key for domain, key in ours.items())


def apart(group: RowGroup, first: RowGroup) -> tuple[Fact, ...]:
    """Why a group is not the first one; a domain that only one of them has is one fact."""
    shared = group.facts.keys() & first.facts.keys()
    here, there = ({d: facts for d, facts in g.facts.items() if d in shared} for g in (group, first))
    domains = {d: (d in group.facts, d in first.facts) for d in (*first.facts, *group.facts) if d not in shared}
    said = {True: "measured", False: "not measured"}
    alone = (Fact(d, said[ours], said[theirs]) for d, (ours, theirs) in domains.items())
    return (*differing_facts(here, there), *alone) if group is not first else ()


def differing_facts(here: Mapping[str, Json], there: Mapping[str, Json]) -> tuple[Fact, ...]:
    """Facts that are not the same, by dotted path; a side that lacks one has None.

    A fact that differs alike on every domain is named once, without the domain.
    """
    found = list(_differences(here, there, ""))
    alike = Counter((fact.path.partition(".")[2], canonical([fact.here, fact.there])) for fact in found)
    shared = {leaf for (leaf, _), times in alike.items() if leaf and times == len(here) == len(there)}
    merged = (Fact(leaf, f.here, f.there) if (leaf := f.path.partition(".")[2]) in shared else f for f in found)
    return tuple({fact.path: fact for fact in merged}.values())


def _differences(here: Json, there: Json, path: str) -> Iterator[Fact]:
    """Where nested data differs; what only one side has is one fact, however much it holds."""
    ours, theirs = _named(here), _named(there)
    if ours is None or theirs is None:
        if here != there:
            yield Fact(path, here, there)
        return
    for name in sorted({*ours, *theirs}):
        yield from _differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)


def _named(value: Json) -> dict[str, Json] | None:
    """The parts of nested data by name: metrics by theirs, for their order means nothing; None for a leaf."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        names = [str(part.get("metric", i)) for i, part in enumerate(value)]
        return dict(zip(names if len({*names}) == len(names) else map(str, range(len(names))), value, strict=True))
    return None


_NONE: Ends = (None, None, None)
MOST = 3
"""Columns of one metric on one domain in the short table, where it was measured with several parameters."""
_PARTIAL = "Shown, not ranked: the missing seeds may be the bad ones."


def board_of(
    results: LoadedResults, suite: str | None = None, source: StatisticsReader | None = None, *, short: bool = False
) -> Board:
    """The leaderboard of all records, or of the specs `within` a suite.

    A `short` one has intervals over seeds and verdicts only in the columns of the short table, which is much quicker.
    """
    source = source or StatisticsReader()
    chosen = [cell for cell in results.loaded if within(cell.record.spec.name, suite)]
    current, superseded = newest(chosen)
    placed = _placed(current)
    groups = [_group(key, rows, source, short) for key, rows in _rows(placed, current, superseded).items()]
    groups.sort(key=_place)
    groups = [replace(group, differs=apart(group, groups[0])) for group in groups]
    source.keep()
    problems = [str(error) for error in results.refused] + _damaged(chosen) + sorted(source.problems.values())
    return Board(tuple(groups), tuple(sorted(cell.path for cell in superseded)), tuple(problems))


def _place(group: RowGroup) -> tuple[bool, bool, int, str, str]:
    """Models of others first, then the group of most rows; what has no numbers is last."""
    small = all(on_small_model(row.newest) for row in group.rows)
    return group.key == UNMEASURED, small, -len(group.rows), group.title, group.key


def work_out(results: LoadedResults, source: StatisticsReader, *, short: bool) -> None:
    """Intervals of the rows of some records, which `source` keeps for the board of which they are a part."""
    current, superseded = newest(results.loaded)
    for rows in _rows(_placed(current), current, superseded).values():
        columns = _columns(rows)
        judged = default_columns(columns) if short else columns
        for row in rows:
            values_of(row.measured, columns, source, judged)
    source.keep()


def _damaged(cells: Iterable[LoadedRecord]) -> list[str]:
    damaged = [cell for cell in cells if cell.record.status == "damaged"]
    return [
        f"{cell.path} is damaged: {cell.record.error.message}; {_remedy(cell)}" for cell in damaged if cell.record.error
    ]


def _remedy(cell: LoadedRecord) -> str:
    return f"`{cell.command}` {'makes' if cell.record.imported else 'computes'} it again"


def _placed(current: Sequence[LoadedRecord]) -> dict[str, dict[RowKey, list[LoadedRecord]]]:
    """Group key to row to cells. A cell without numbers stands with its row, its spec, what was to be measured like it, or
    by itself: a run that failed is shown beside those it was meant to be compared with.
    """
    placed: dict[str, dict[RowKey, list[LoadedRecord]]] = defaultdict(lambda: defaultdict(list))
    homes: dict[RowKey | str, str] = {}
    groups = merged_groups(cell.record for cell in current)
    measured = sorted((cell for cell in current if cell.record.status == "ok"), key=age_of)
    for cell in measured:
        row = row_key(cell.record)
        key = homes[row] = homes[row[0]] = homes[cell.asked.setting] = groups[group_key(cell.record)]
        placed[key][row].append(cell)
    for cell in current:
        if cell.record.status != "ok":
            row = row_key(cell.record)
            known = (homes[place] for place in (row, row[0], cell.asked.setting) if place in homes)
            placed[next(known, groups[group_key(cell.record)])][row].append(cell)
    return placed


def _rows(
    placed: Mapping[str, Mapping[RowKey, list[LoadedRecord]]],
    current: Sequence[LoadedRecord],
    superseded: Sequence[LoadedRecord],
) -> dict[str, list[Row]]:
    expected: dict[str, set[int]] = defaultdict(set)
    for cell in current:
        expected[cell.record.spec.name].add(cell.record.seed)
    older = Counter(row_key(cell.record) for cell in superseded)
    rows: dict[str, list[Row]] = {}
    for key, members in placed.items():
        for (spec, label, measured), cells in members.items():
            ordered = tuple(sorted(cells, key=lambda cell: cell.record.seed))
            row = Row(spec, label, ordered, tuple(sorted(expected[spec])))
            rows.setdefault(key, []).append(replace(row, badges=tuple(_badges(row, older[spec, label, measured]))))
    return rows


def _badges(row: Row, older: int) -> Iterable[Badge]:
    if origins := sorted({f"{i.tool} {i.version or ''}".rstrip() for c in row.cells if (i := c.record.imported)}):
        yield Badge(
            "imported", f"imported: {', '.join(origins)}", "Measured by another tool, read from its result file."
        )
    measured, expected = len(row.measured), len(row.expected)
    if measured and not row.complete:
        yield Badge("partial", f"{measured} of {expected} seeds", _PARTIAL)
    for cell in row.cells:
        if cell.record.status != "ok":
            error = cell.record.error
            detail = f"{error.stage}: {error.type}: {error.message}" if error else ""
            yield Badge("failed", f"{cell.record.status} (seed {cell.record.seed})", detail)
    if any(cell.record.environment.git and cell.record.environment.git.dirty for cell in row.measured):
        yield Badge("dirty", "dirty tree", "Measured with uncommitted changes to the code.")
    if old := sorted({name for cell in row.measured for name in _outdated(cell)}):
        yield Badge("old", "old metric version", ", ".join(old))
    if older:
        yield Badge("superseded", f"{older} older", "Older records of this row that are not shown.")
    if warnings := sorted({w for cell in row.cells for w in cell.record.warnings}):
        yield Badge("warning", f"{len(warnings)} warning{'s' * (len(warnings) > 1)}", "\n".join(warnings))


def _outdated(cell: LoadedRecord) -> Iterable[str]:
    return _older(cell.metrics_section, cell.numbers.headings)


@lru_cache(maxsize=4096)
def _older(metrics: str, headings: Headings) -> tuple[str, ...]:
    now = current_versions(metrics)
    return tuple(f"{h.id}@{h.version}" for h in headings if h.version < now.get(h.id, 0))


def _group(key: str, rows: list[Row], source: StatisticsReader, short: bool) -> RowGroup:
    columns = _columns(rows)
    shown = default_columns(columns)
    judged = shown if short else columns
    source.expect(row.measured for row in rows if len(row.measured) > 1)
    filled = [replace(row, values=values_of(row.measured, columns, source, judged)) for row in rows]
    first = next((row.newest.record for row in filled if row.measured), filled[0].newest.record)
    ordered = ranked(filled, shown)
    return RowGroup(
        key=key,
        title=_title(first, key) + (" · imported" if all(_imported(row) for row in ordered) else ""),
        domains=tuple(dict.fromkeys(c.domain for c in columns if c.domain is not None)),
        facts={d: c.fields for row in ordered for cell in row.measured for d, c in cell.record.compared.items()},
        differs=(),
        columns=columns,
        shown=shown,
        rows=ordered,
        verdicts=verdicts_of(ordered, judged, source),
    )


def _title(record: Record, key: str) -> str:
    if key == UNMEASURED:
        return "Not measured"
    parts = [model_name(record.resolved.get("model")), _places(record.resolved)]
    return " · ".join(part for part in parts if part)


def _imported(row: Row) -> bool:
    return any(cell.record.imported for cell in row.cells)


def _places(resolved: Mapping[str, Json]) -> str:
    """Where the rows read or write hidden states, nothing where the spec names no place."""
    layer = resolved.get("layer") if resolved.get("layer") is not None else resolved.get("layers")
    listed = layer if isinstance(layer, list) else [] if layer is None else [layer]
    points: dict[str, list[str]] = {}  # of each block: eighteen sites of six blocks are read as what they repeat
    for place in listed:
        site = place if isinstance(place, dict) else {"index": place}
        points.setdefault(str(site.get("index")), []).append(str(site.get("point", "")))
    alike: dict[str, list[str]] = {}
    for block, found in points.items():
        alike.setdefault(", ".join(found), []).append(block)
    shown = [f"{_listed(blocks)} {found}".strip() for found, blocks in alike.items()]
    return f"layer{'s' * (len(points) > 1)} {'; '.join(shown)}" if shown else ""


def _listed(blocks: Sequence[str]) -> str:
    """Block numbers, those from the first to the last as `0–5`."""
    first = int(blocks[0]) if blocks[0].isdecimal() else 0  # imported records may name blocks otherwise
    run = [str(first + n) for n in range(len(blocks))]
    return f"{run[0]}–{run[-1]}" if list(blocks) == run and len(run) > 2 else ", ".join(blocks)


def _columns(rows: Iterable[Row]) -> tuple[Column, ...]:
    """All columns in order of domain, then headlines by their place, then the others as the records list them."""
    held = (numbers for row in rows for cell in row.measured for numbers in (cell.numbers, cell.on_machine) if numbers)
    # Thousands of records share a few lists of headings.
    listed = dict.fromkeys(numbers.headings for numbers in held)
    found = list({key: column for headings in listed for key, (_, column) in columns_of(headings).items()}.values())
    domains = list(dict.fromkeys(column.domain for column in found))

    def place(column: Column) -> tuple[int, float, int, int]:
        position = math.inf if column.headline is None else column.headline
        return domains.index(column.domain), position, column.budget or 0, column.version

    return tuple(sorted(found, key=place))


def default_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The short table: the headlines of SAEs as trained; where no metric has one, one number of every family of metrics."""
    columns = [c for c in columns if c.metric not in ON_MACHINE] or columns
    trained = [c for c in columns if c.budget is None] or list(columns)
    if headlines := [c for c in trained if c.headline is not None]:
        return _first(headlines, MOST, lambda column: column.metric)
    return _first(trained, 1, lambda column: column.metric.partition(".")[0])


def _first(columns: Iterable[Column], most: int, kind: Callable[[Column], str]) -> tuple[Column, ...]:
    """On every domain the first `most` columns of each kind."""
    seen: Counter[tuple[str | None, str]] = Counter()
    shown = []
    for column in columns:
        place = column.domain, kind(column)
        if seen[place] < most:
            shown.append(column)
        seen[place] += 1
    return tuple(shown)


def values_of(
    cells: Sequence[LoadedRecord],
    columns: Iterable[Column],
    source: StatisticsReader,
    judged: Collection[Column] | None = None,
) -> Mapping[str, Value]:
    """The row's number in every column: blank where any of its seeds has none.

    Only `judged` columns get the interval of a mean over seeds; default: all.
    """
    by_key = {column.key: column for column in columns}
    judged = by_key.values() if judged is None else [column for column in judged if column.key in by_key]
    # One seed has the interval that stands in its record.
    open_ = [column for column in judged if _measured(cells, column)] if len(cells) > 1 else []
    intervals = source.intervals(cells, open_) if open_ else {}
    return RowValues(by_key, lambda column: _value(cells, column, intervals.get(column.key, _NONE)))


def _measured(cells: Sequence[LoadedRecord], column: Column) -> bool:
    first = cells[0].numbers.headings
    if column.key in columns_of(first) and all(c.numbers.headings is first and not c.numbers.missing for c in cells):
        return True  # as of nearly all rows
    found = (number_of(cell, column.key) for cell in cells)
    return all(number and number[0].value(number[1]) is not None for number in found)


def _value(cells: Sequence[LoadedRecord], column: Column, interval: Ends) -> Value:
    found = []
    for cell in cells:
        number = number_of(cell, column.key)
        value = number and number[0].value(number[1])
        if number is None or value is None:
            reason = (number and number[0].reasons.get(number[1])) or "not measured"
            return Value(None, f"seed {cell.record.seed}: {reason}" if len(cells) > 1 else reason)
        found.append((value, *number))
    if not found:
        return Value(None, "not measured")
    _, first, place = found[0]
    values, counted = tuple(value for value, _, _ in found), first.pattern
    n, repeats, trained_k = counted.n[place], counted.repeats[place], counted.trained_k[place]
    if any(numbers.pattern is not counted or at != place for _, numbers, at in found):
        counts = {(numbers.pattern.n[at], numbers.pattern.repeats[at]) for _, numbers, at in found}
        n, repeats = counts.pop() if len(counts) == 1 else (None, 0)
        trained_k = next((k for _, numbers, at in found if (k := numbers.pattern.trained_k[at])), None)
    units = units_of(cells[0], column, first.headings[place].method)
    if len(values) == 1:
        return Value(values[0], None, *first.ends(place), None, values, n, units, repeats, trained_k)
    low, high, why = interval
    mean = math.fsum(values) / len(values)
    return Value(mean, why, low, high, _deviation(values), values, n, units, repeats, trained_k)


def _deviation(numbers: Sequence[float]) -> float:
    """Standard deviation of a sample. `statistics.stdev` gives the same to the last digit or two, from fractions, in 50 times the time."""
    # Beside the first of them, so that equal numbers have none.
    beside = [number - numbers[0] for number in numbers]
    mean = math.fsum(beside) / len(beside)
    return math.dist(beside, [mean] * len(beside)) / math.sqrt(len(beside) - 1)
