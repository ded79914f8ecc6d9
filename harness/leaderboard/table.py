"""Records become a board: the newest record of every cell, rows over seeds, groups of rows measured alike."""

from __future__ import annotations

import math
import statistics as stats
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.canonical import canonical
from harness.leaderboard.board import Badge, Board, Column, Fact, Group, Row, Value
from harness.leaderboard.evidence import Source, Unusable, current_versions
from harness.leaderboard.load import Loaded, Results
from harness.leaderboard.statistics import interval, replicates
from harness.leaderboard.ties import verdicts_of
from harness.record import MetricValue, Record
from harness.section import Json

DEFAULT_COLUMNS = (
    "l0",
    "explained_variance.centred",
    "cross_entropy.increase",
    "cross_entropy.loss_recovered_zero",
    "dead_fraction",
)
NOT_IDENTITY = frozenset({"resources", "metrics"})
"""Sections of a resolved spec that do not change what was trained."""
_PARTIAL = "Shown, not ranked: the missing seeds may be the bad ones."
UNMEASURED = ""
"""Key of the group of rows that have no numbers and no siblings with numbers."""

Line = tuple[str, str]
"""Spec name and label."""


def board_of(results: Results, suite: str | None = None, source: Source | None = None) -> Board:
    """The leaderboard of all records, or of the suite that a spec's name starts with."""
    source = source or Source()
    chosen = [cell for cell in results.loaded if suite is None or suite_of(cell.record.spec.name) == suite]
    current, superseded = newest(chosen)
    placed = _placed(current)
    groups = [_group(key, rows, source) for key, rows in _rows(placed, current, superseded).items()]
    groups.sort(key=lambda group: (group.key == UNMEASURED, -len(group.rows), group.title, group.key))
    groups = [replace(group, differs=differing_facts(group.facts, groups[0].facts)) for group in groups]
    problems = [str(error) for error in results.refused] + sorted(source.problems.values())
    return Board(tuple(groups), tuple(sorted(cell.path for cell in superseded)), tuple(problems))


def suite_of(name: str) -> str:
    """First component of a spec's name."""
    return name.partition("/")[0]


def newest(cells: Iterable[Loaded]) -> tuple[list[Loaded], list[Loaded]]:
    """For each spec, label and seed the newest record; and all others.

    Seeds left over from an older version of the spec are among the others: the rows of a table must not mix versions.
    """
    by_seed: dict[tuple[str, str, int], list[Loaded]] = defaultdict(list)
    for cell in cells:
        by_seed[cell.record.spec.name, cell.record.label, cell.record.seed].append(cell)
    lines: dict[Line, list[Loaded]] = defaultdict(list)
    older: list[Loaded] = []
    for (spec, label, _), found in sorted(by_seed.items()):
        *replaced, latest = sorted(found, key=_age)
        older += replaced
        lines[spec, label].append(latest)
    current: list[Loaded] = []
    for line in lines.values():
        identity = _identity(max(line, key=_age).record)
        for cell in line:
            (current if _identity(cell.record) == identity else older).append(cell)
    return current, older


def group_key(record: Record) -> str:
    """Rows with equal keys were measured alike on the same domains."""
    keys = {domain: agreed.key for domain, agreed in record.comparability.items()}
    return canonical(keys) if keys else UNMEASURED


def flatten(value: Json, path: str = "") -> dict[str, Json]:
    """Leaves of nested JSON by dotted path."""
    if isinstance(value, Mapping) and value:
        inner = (flatten(v, f"{path}.{k}" if path else str(k)) for k, v in value.items())
        return {p: leaf for found in inner for p, leaf in found.items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return {p: leaf for i, item in enumerate(value) for p, leaf in flatten(item, f"{path}.{i}").items()}
    return {path: value}


def differing_facts(here: Mapping[str, Json], there: Mapping[str, Json]) -> tuple[Fact, ...]:
    """Facts that are not the same, by dotted path; a side that lacks one has None.

    A fact that differs alike on every domain is named once, without the domain.
    """
    ours, theirs = flatten(here), flatten(there)
    paths = sorted(p for p in {*ours, *theirs} if p and ours.get(p) != theirs.get(p))
    found = [Fact(path, ours.get(path), theirs.get(path)) for path in paths]
    alike = Counter((fact.path.partition(".")[2], canonical([fact.here, fact.there])) for fact in found)
    shared = {leaf for (leaf, _), times in alike.items() if leaf and times == len(here) == len(there)}
    merged = (Fact(leaf, f.here, f.there) if (leaf := f.path.partition(".")[2]) in shared else f for f in found)
    return tuple({fact.path: fact for fact in merged}.values())


def _age(cell: Loaded) -> tuple[object, str]:
    return cell.created, cell.path


def _identity(record: Record) -> str:
    return canonical({k: v for k, v in record.resolved.items() if k not in NOT_IDENTITY})


def _placed(current: Sequence[Loaded]) -> dict[str, dict[Line, list[Loaded]]]:
    """Group key to line to cells. A cell without numbers stands with its line, its spec, or by itself."""
    placed: dict[str, dict[Line, list[Loaded]]] = defaultdict(lambda: defaultdict(list))
    homes: dict[Line | str, str] = {}
    measured = sorted((cell for cell in current if cell.record.status == "ok"), key=_age)
    for cell in measured:
        line = (cell.record.spec.name, cell.record.label)
        key = homes[line] = homes[line[0]] = homes[_setting(cell.record)] = group_key(cell.record)
        placed[key][line].append(cell)
    for cell in current:
        if cell.record.status != "ok":
            line = (cell.record.spec.name, cell.record.label)
            known = (homes[place] for place in (line, line[0], _setting(cell.record)) if place in homes)
            placed[next(known, group_key(cell.record))][line].append(cell)
    return placed


def _setting(record: Record) -> str:
    """What was to be measured, for cells that never came to it."""
    evaluated = (record.resolved.get("dataset") or {}).get("eval")
    return canonical([record.resolved.get("model"), record.resolved.get("layer"), evaluated])


def _rows(
    placed: Mapping[str, Mapping[Line, list[Loaded]]], current: Sequence[Loaded], superseded: Sequence[Loaded]
) -> dict[str, list[Row]]:
    expected: dict[str, set[int]] = defaultdict(set)
    for cell in current:
        expected[cell.record.spec.name].add(cell.record.seed)
    older = Counter((cell.record.spec.name, cell.record.label) for cell in superseded)
    rows: dict[str, list[Row]] = {}
    for key, lines in placed.items():
        for (spec, label), cells in lines.items():
            ordered = tuple(sorted(cells, key=lambda cell: cell.record.seed))
            row = Row(spec, label, ordered, tuple(sorted(expected[spec])))
            rows.setdefault(key, []).append(replace(row, badges=tuple(_badges(row, older[spec, label]))))
    return rows


def _badges(row: Row, older: int) -> Iterable[Badge]:
    measured, expected = len(row.measured), len(row.expected)
    if measured and not row.complete:
        yield Badge("partial", f"{measured} of {expected} seeds", _PARTIAL)
    for cell in row.cells:
        if cell.record.status != "ok":
            error = cell.record.error
            detail = f"{error.stage}: {error.type}: {error.message}" if error else ""
            yield Badge("failed", f"{cell.record.status} (seed {cell.record.seed})", detail)
    if any((cell.record.environment.get("git") or {}).get("dirty") for cell in row.measured):
        yield Badge("dirty", "dirty tree", "Measured with uncommitted changes to the code.")
    if old := sorted({name for cell in row.measured for name in _outdated(cell.record)}):
        yield Badge("old", "old metric version", ", ".join(old))
    if older:
        yield Badge("superseded", f"{older} older", "Older records of this row that are not shown.")
    if warnings := sorted({w for cell in row.cells for w in cell.record.warnings}):
        yield Badge("warning", f"{len(warnings)} warning{'s' * (len(warnings) > 1)}", "\n".join(warnings))


def _outdated(record: Record) -> Iterable[str]:
    now = current_versions(record)
    return (f"{m.id}@{m.version}" for m in record.metrics if m.version < now.get(m.id, 0))


def _group(key: str, rows: list[Row], source: Source) -> Group:
    columns = _columns(rows)
    shown = default_columns(columns)
    filled = [replace(row, values=values_of(row.measured, columns, source)) for row in rows]
    first = next((row.newest.record for row in filled if row.measured), filled[0].newest.record)
    ordered = _ranked(filled, shown)
    return Group(
        key=key,
        title=_title(first, key),
        domains=tuple(dict.fromkeys(c.domain for c in columns if c.domain is not None)),
        facts={domain: c.fields for domain, c in first.comparability.items()},
        differs=(),
        columns=columns,
        shown=shown,
        rows=ordered,
        verdicts=verdicts_of(ordered, columns, source),
    )


def _title(record: Record, key: str) -> str:
    if key == UNMEASURED:
        return "Not measured"
    model, layer = record.resolved.get("model"), record.resolved.get("layer")
    name = model.get("id") or model.get("path") or model.get("adapter") if isinstance(model, dict) else model
    index = f"{layer.get('index')} {layer.get('point', '')}".strip() if isinstance(layer, dict) else layer
    return f"{name or 'unknown model'} · layer {index}"


def _columns(rows: Iterable[Row]) -> tuple[Column, ...]:
    """All columns in order of domain, then of the records' metrics, with metrics of the short table first."""
    by_key = {c.key: c for row in rows for cell in row.measured for c in map(Column.of, cell.record.metrics)}
    found = list(by_key.values())
    domains = list(dict.fromkeys(column.domain for column in found))
    order = {metric: position for position, metric in enumerate(DEFAULT_COLUMNS)}

    def place(column: Column) -> tuple[int, int, int, int]:
        position = order.get(column.metric, len(order))
        return domains.index(column.domain), position, column.budget or 0, column.version

    return tuple(sorted(found, key=place))


def default_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The short table: the known core numbers as trained, and one number of every other family of metrics."""
    trained = [c for c in columns if c.budget is None] or list(columns)
    families = {c.metric.partition(".")[0] for c in trained if c.metric in DEFAULT_COLUMNS}
    shown: list[Column] = []
    for column in trained:
        family = column.metric.partition(".")[0]
        seen = any(c.metric.partition(".")[0] == family and c.domain == column.domain for c in shown)
        if column.metric in DEFAULT_COLUMNS or (family not in families and not seen):
            shown.append(column)
    core = [c for c in shown if c.metric in DEFAULT_COLUMNS]
    return tuple(core or shown)


def values_of(cells: Sequence[Loaded], columns: Iterable[Column], source: Source) -> dict[str, Value]:
    """The row's number in every column: blank where any of its seeds has none."""
    by_cell = [{Column.of(metric).key: metric for metric in cell.record.metrics} for cell in cells]
    return {c.key: _value(cells, [found.get(c.key) for found in by_cell], c, source) for c in columns}


def _value(cells: Sequence[Loaded], found: list[MetricValue | None], column: Column, source: Source) -> Value:
    for cell, metric in zip(cells, found, strict=True):
        if metric is None or metric.value is None:
            reason = (metric and metric.null_reason) or "not measured"
            return Value(None, f"seed {cell.record.seed}: {reason}" if len(cells) > 1 else reason)
    metrics = [metric for metric in found if metric is not None]
    numbers = [metric.value for metric in metrics if metric.value is not None]
    if not numbers:
        return Value(None, "not measured")
    n = metrics[0].n if len({metric.n for metric in metrics}) == 1 else None
    if len(numbers) == 1:
        ci = metrics[0].ci
        return Value(numbers[0], None, ci.low if ci else None, ci.high if ci else None, None, tuple(numbers), n)
    low, high, why = _seed_mean_interval(cells, column, source)
    return Value(math.fsum(numbers) / len(numbers), why, low, high, stats.stdev(numbers), tuple(numbers), n)


def _seed_mean_interval(
    cells: Sequence[Loaded], column: Column, source: Source
) -> tuple[float | None, float | None, str | None]:
    try:
        evidence = source.evidence(cells, column)
    except Unusable as error:
        return None, None, str(error)
    low, high = interval(replicates(evidence.formula, evidence.inputs), len(evidence.inputs[0]))
    return low, high, None if low is not None else "too few documents for an interval"


def _ranked(rows: list[Row], shown: Sequence[Column]) -> tuple[Row, ...]:
    """Best first in the first column that has a direction; then rows that are not ranked; then rows without numbers."""
    leading = next((column for column in shown if column.higher_is_better is not None), None)

    def place(row: Row) -> tuple[int, float, str, str]:
        value = row.values[leading.key].value if leading and row.measured else None
        if leading is None or value is None:
            return (2 if not row.measured else 1, 0.0, row.spec, row.label)
        return (0 if row.complete else 1, -value if leading.higher_is_better else value, row.spec, row.label)

    return tuple(sorted(rows, key=place))
