"""A judge whose endpoint is gone must not look like one that answers badly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from latentbench.errors import NotAvailable
from latentbench_adapters.protocols import Reply

GONE = 8
"""So many requests in a row without an answer, retries included, and the endpoint counts as gone."""


def answered(replies: Iterable[Reply], judge: str) -> Iterator[Reply]:
    """Passes the replies of the judge called `judge` on; transcripts keep what was answered.

    Raises NotAvailable as soon as the endpoint is gone, and at the end when any request got no answer: a score without
    them would differ from an undisturbed run's, and be stored.
    """
    lost = row = total = 0
    first = ""
    for reply in replies:
        total, lost, row = total + 1, lost + reply.lost, row + 1 if reply.lost else 0
        first = first or (reply.error or "" if reply.lost else "")
        if row == GONE:
            raise NotAvailable(_said(judge, f"{row} requests in a row", first))
        yield reply
    if lost:
        raise NotAvailable(_said(judge, f"{lost} of {total} requests", first))


def _said(judge: str, which: str, first: str) -> str:
    return (
        f"the judge {judge} did not answer {which} (first: {first}). What it answered is kept; run again to ask only the "
        "rest, or set `unanswered: count` on the judge to count them as failures"
    )
