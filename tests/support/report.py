"""The page that says what a run of the fault suite has tried."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

_INTRODUCTION = """# What the fault suite has tried

Written by `make faults`. Every number was counted by the tests themselves; a test that passed found in each of its cases
what its name says. A row is of the last run of that test.
"""


def page(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of tests with their outcome, counts and duration."""
    return "\n".join([_INTRODUCTION, *_summary(outcomes), "", *_rows(outcomes)]) + "\n"


def _summary(outcomes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    by = [seen["outcome"] for seen in outcomes.values()]
    counted = ", ".join(f"{by.count(word)} {word}" for word in ("passed", "failed", "skipped") if word in by)
    yield f"{len(by)} tests: {counted}. On {'; '.join(sorted({seen['machine'] for seen in outcomes.values()}))}."


def _rows(outcomes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| test | cases | counted | seconds | day |"
    yield "| --- | --- | --- | ---: | --- |"
    cases: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for test, seen in outcomes.items():
        cases[test.partition("[")[0]].append(seen)
    for test, group in cases.items():
        by = Counter(seen["outcome"] for seen in group)
        told = ", ".join(f"{times} {outcome}" for outcome, times in by.items())
        counts = "; ".join(f"{name} {_number(value)}" for name, value in _sums(group).items())
        seconds = sum(seen["seconds"] for seen in group)
        yield f"| {_title(test)} | {told} | {counts} | {seconds:.1f} | {max(seen['day'] for seen in group)} |"


def _sums(group: list[Mapping[str, Any]]) -> Counter[str]:
    """What the cases of one test counted, together."""
    total: Counter[str] = Counter()
    for seen in group:
        for name, value in seen["counts"].items():
            total[name] += value
    return total


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _title(test: str) -> str:
    file, _, name = test.partition("::")
    words = re.sub(r"^test_", "", name).replace("_", " ").replace("|", "\\|")
    return f"`{file.rpartition('/')[2]}`: {words}"
