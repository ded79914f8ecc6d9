"""A check: a question whose answer is known, and what this installation answers."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from latentbench.core.border import contained

CheckVerdict = Literal["pass", "fail", "note"]


@dataclass(frozen=True)
class Finding:
    """What a check saw."""

    passed: bool | None
    """None where nothing can be wrong: something to know."""
    detail: str


@dataclass(frozen=True)
class Check:
    """A question with a known answer."""

    name: str
    group: Literal["metrics", "intervals", "surroundings"]
    look: Callable[[], Finding]


@dataclass(frozen=True)
class CheckResult:
    """A check that was run."""

    name: str
    group: str
    verdict: CheckVerdict
    detail: str
    seconds: float


def run_checks(checks: Iterable[Check]) -> Iterator[CheckResult]:
    """Runs every check; one that raises has failed, and the others go on."""
    for check in checks:
        started = time.monotonic()
        try:
            found = check.look()
        except BaseException as error:  # whatever is broken here is what the doctor is asked about
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = contained(error)
            found = Finding(False, f"{type(told).__name__}: {told} ({place.name}, line {place.lineno})")
        verdict: CheckVerdict = "note" if found.passed is None else "pass" if found.passed else "fail"
        yield CheckResult(check.name, check.group, verdict, found.detail, time.monotonic() - started)


@contextmanager
def one_thread() -> Iterator[None]:
    """While open, torch computes in one thread: the checks are small, and on a busy machine threads wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def close(name: str, value: float, truth: float, tolerance: float) -> Finding:
    """A number against the truth."""
    return Finding(abs(value - truth) <= tolerance, f"{name} = {value:.10g}, truth {truth:g} ± {tolerance:g}")


def both(*findings: Finding) -> Finding:
    """All of several findings."""
    return Finding(all(found.passed for found in findings), "; ".join(found.detail for found in findings))
