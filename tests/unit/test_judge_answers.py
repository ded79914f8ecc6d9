"""How a judge's answers are read, kept and counted, and when a judge counts as gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.autointerp.prompts import explanation_in, labels_in, probabilities_in
from latentbench.core.errors import NotAvailable
from latentbench.core.judges import answered
from latentbench.core.protocols import Reply
from latentbench_adapters.judges.requests import Transcripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answers": [1, 0, 1]}', (True, False, True)),
        ('```json\n{"answers": [1, 0, 1]}\n```', (True, False, True)),
        ('I think {x} so: {"answers": [true, false, true]} done', (True, False, True)),
        ('<think>{"answers": [0, 0, 0]}</think>{"answers": [1, 0, 1]}', (True, False, True)),
        ('{"answers": [1, 0, 1]} that is {"answers": [1, 0, 1]}', (True, False, True)),
        ('{"answers": [1, 0, 1]} or {"answers": [1, 1, 1]}', None),
        ('{"answers": [1, 0, 1]} or {"answers": [1, 0]}', None),
        ('{"answers": [1, 0]}', None),
        ('{"answers": [1, 0, 2]}', None),
        ('{"answers": [1, 0, 1.0]}', None),
        ('{"answers": ["1", "0", "1"]}', None),
        ('{"answers": "101"}', None),
        ('{"answers": {"0": 1}}', None),
        ("[1, 0, 1]", None),
        ("", None),
        ("{" * 100_000, None),
        ('{"answers": ' + "[" * 100_000, None),
        ('{"answers": [NaN, 0, 1]}', None),
        ('{"answers": [1, 0, 1', None),
    ],
)
def test_only_exactly_what_was_asked_is_an_answer(text: str, expected: Any) -> None:
    assert labels_in(text, 3) == expected


@given(st.text(max_size=200), st.integers(1, 9))
def test_no_answer_breaks_the_reader(text: str, count: int) -> None:
    labels_in(text, count)
    explanation_in(text)


def test_explanations_are_one_line_of_bounded_length() -> None:
    assert explanation_in('{"explanation": " the\\n word  x "}') == "the word x"
    assert explanation_in('{"explanation": "a"} {"explanation": "b"}') is None
    assert explanation_in(json.dumps({"explanation": "x" * 2001})) is None
    assert explanation_in('{"explanation": ""}') is None


def test_transcripts_hold_the_whole_request(tmp_path: Path) -> None:
    transcripts = Transcripts(tmp_path)
    transcripts.put({"a": 1}, Reply("x", None, 3, 4))
    assert transcripts.get({"a": 1}) == Reply("x", None, 3, 4)
    assert transcripts.get({"a": 2}) is None
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["request"] == {"a": 1}


@pytest.mark.parametrize(
    ("text", "ones", "expected"),
    [
        ('{"answers": [0, 1]}', {13: 0.2, 16: 0.9}, (0.2, 0.9)),
        ('<think>{"answers": [1, 1]}</think> {"answers": [0, 1]}', {48: 0.2, 51: 0.9}, (0.2, 0.9)),
        ('{"answers": [0, 1]}', {13: 0.2}, None),
        ('{"answers": [0, 1]}', None, None),
        ('{"answers": [true, false]}', {13: 0.2}, None),
        ('{"answers": [0]}', {13: 0.2, 16: 0.9}, None),
    ],
)
def test_probabilities_are_those_of_the_labels(text: str, ones: Any, expected: Any) -> None:
    assert probabilities_in(text, ones, 2) == expected


GOOD, LOST = Reply("yes"), Reply(None, "no connection", lost=True)
UNREADABLE = Reply(None, "the answer holds no text")


def test_replies_of_a_judge_that_is_there_pass() -> None:
    assert list(answered([GOOD, UNREADABLE, GOOD], "m")) == [GOOD, UNREADABLE, GOOD]


def test_a_judge_that_is_gone_is_given_up_at_once() -> None:
    waiting = iter([GOOD, LOST, GOOD, *[LOST] * 20])
    replies = answered(waiting, "m")
    assert [next(replies) for _ in range(10)] == [GOOD, LOST, GOOD, *[LOST] * 7]
    with pytest.raises(NotAvailable, match=r"the judge m did not answer 8 requests in a row \(first: no connection\)"):
        next(replies)
    assert len(list(waiting)) == 12


def test_one_request_without_an_answer_is_said_when_all_others_were_asked() -> None:
    replies = answered([GOOD, LOST, GOOD], "m")
    assert [next(replies) for _ in range(3)] == [GOOD, LOST, GOOD]
    with pytest.raises(NotAvailable, match="1 of 3 requests"):
        next(replies)
