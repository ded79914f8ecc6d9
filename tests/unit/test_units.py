"""Documents count once: copies change no interval, no test and no tie, and tables say how many were distinct."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentbench.activations.tokens import EvalTokens, evaluation_tokens, units_together
from latentbench.core.errors import CellFailed
from latentbench.core.hashing import file_digest
from latentbench.core.text import folded
from latentbench.core.text_digests import digest_of, folded_digest_of
from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.board import Board
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.records.integrity import sealed
from latentbench.records.record import DocumentStatistics
from latentbench.records.results import read_record
from latentbench.statistics.intervals import document_interval
from latentbench.statistics.paired import exchange_test
from latentbench.statistics.units import Units, units_of
from latentbench.statistics.unpaired import unpaired_difference
from latentbench.store.files import write_arrays, write_json
from latentbench.study.storage import from_content, to_content
from latentbench.study.study import Findings
from tests.unit.leaderboard_factory import METRICS, Planted, record
from tests.unit.test_tokens import tokenizer

texts = st.text(st.sampled_from("ab \n\t\u00a0\u2003\x1c\x85"), max_size=12)
likeness = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    return total / n


def copied(numbers: Sequence[int], distinct: np.ndarray) -> np.ndarray:
    """[things, …] what copies have that have exactly what the unit they are of has."""
    return np.asarray(distinct[list(numbers)])


# -- what is one unit ------------------------------------------------------------------------------------------------


def test_units_by_hand() -> None:
    assert units_of("abcab").numbers.tolist() == [0, 1, 2, 0, 1]
    # The third is the first by its text and the second by its tokens: all three are one.
    assert units_of(["x", "y", "x"], [1, 2, 2]).numbers.tolist() == [0, 0, 0]
    assert units_of(["x", "y", "z", "w"], [1, 2, 3, 2]).numbers.tolist() == [0, 1, 2, 1]
    made = units_of("abcab")
    assert (len(made), made.repeats) == (3, 2)
    assert made.of([4, 2, 1]).numbers.tolist() == [0, 1, 0]
    assert made.shared(["5", "2", "3", "1", "4"]) == ("1", "2", "3", "1", "2")
    assert (len(units_of([])), units_of([]).repeats) == (0, 0)


@settings(deadline=None)
@given(st.data())
def test_units_are_the_finest_classes_that_keep_what_is_alike_together(data: st.DataObject) -> None:
    first = data.draw(likeness)
    second = data.draw(st.lists(st.integers(0, 4), min_size=len(first), max_size=len(first)))
    numbers = units_of(first, second).numbers.tolist()
    expected = list(range(len(first)))  # by merging pairs until nothing changes
    while True:
        before = list(expected)
        for i, j in combinations(range(len(first)), 2):
            if first[i] == first[j] or second[i] == second[j]:
                low, high = sorted((expected[i], expected[j]))
                expected = [low if number == high else number for number in expected]
        if before == expected:
            break
    order = {number: place for place, number in enumerate(dict.fromkeys(expected))}
    assert numbers == [order[number] for number in expected]


@settings(deadline=None)
@given(likeness)
def test_what_does_not_repeat_is_left_exactly_as_it_is(values: list[int]) -> None:
    statistics = {"x": np.array([-0.0, *map(float, values)])}
    assert units_of(range(len(values) + 1)).summed(statistics) is statistics


# -- intervals and tests ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(10, 30), st.lists(st.integers(0, 29), max_size=40), st.integers(0, 2**32 - 1))
def test_copies_give_the_intervals_and_p_values_of_the_weighted_documents(m: int, more: list[int], seed: int) -> None:
    """Every document once and then `more` of them again, against each document times its number of copies."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(1, 1000, (2, m, 2)).astype(np.float64)
    numbers = [*range(m), *(i % m for i in more)]
    times = np.bincount(numbers, minlength=m).astype(np.float64)[:, None]
    units = units_of(numbers)
    ours = [np.stack([*units.summed({str(i): copied(numbers, x)[:, i] for i in (0, 1)}).values()], 1) for x in (a, b)]
    np.testing.assert_array_equal(ours[0], times * a)
    assert document_interval(ratio, ours[0]) == document_interval(ratio, times * a)
    assert exchange_test(ratio, *ours) == exchange_test(ratio, times * a, times * b)
    unpaired = [unpaired_difference(ratio, [x], [y], "words") for x, y in (ours, (times * a, times * b))]
    assert unpaired[0] == unpaired[1]


def test_a_hundred_copies_of_a_few_documents_are_not_many_documents() -> None:
    rng = np.random.default_rng(0)
    stats = {"ce_sae": rng.gamma(2, 1, 12), "ce_clean": np.zeros(12), "predictions": np.ones(12)}
    numbers = [*range(12)] * 100
    many = {name: copied(numbers, values) for name, values in stats.items()}
    as_if, once, plain = (
        next(v for v in found if v.id == "cross_entropy.increase")
        for found in (
            metric_values(METRICS, {"d": many}),
            metric_values(METRICS, {"d": many}, units={"d": units_of(numbers)}),
            metric_values(METRICS, {"d": stats}),
        )
    )
    assert as_if.ci is not None
    assert once.ci is not None
    assert plain.ci is not None
    assert (once.value, once.ci.low, once.ci.high) == pytest.approx((plain.value, plain.ci.low, plain.ci.high))
    assert once.ci.high - once.ci.low > 8 * (as_if.ci.high - as_if.ci.low)
    assert (once.n, once.repeats) == (12, 1188)
    assert (plain.n, plain.repeats) == (12, 0)
    few = {name: values[np.arange(500) % 5] for name, values in stats.items()}
    (five,) = (v for v in metric_values(METRICS, {"d": few}, units={"d": units_of(i % 5 for i in range(500))})
               if v.id == "cross_entropy.increase")  # fmt: skip
    assert (five.n, five.repeats, five.ci) == (5, 495, None)


@settings(deadline=None)
@given(st.permutations([*range(12), 0, 0, 3, 11, 7, 7]))
def test_the_order_of_copies_changes_nothing(order: list[int]) -> None:
    """In any order p-values are the same; where documents first appear in the same order, intervals are to the last bit."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 1000, (2, 12, 2)).astype(np.float64)
    plain = [*range(12), 0, 0, 3, 11, 7, 7]
    made = []
    for numbers in (plain, sorted(order), order):
        units = units_of(numbers)
        sums = [
            np.stack([*units.summed({str(i): copied(numbers, x)[:, i] for i in (0, 1)}).values()], 1) for x in (a, b)
        ]
        made.append((exchange_test(ratio, *sums).p, document_interval(ratio, sums[0]), sorted(map(tuple, sums[0]))))
    first, beside, anyhow = made
    assert beside == first
    assert anyhow[0] == pytest.approx(first[0], rel=1e-9)
    assert anyhow[2] == first[2]


def test_values_without_repeats_are_written_as_they_were() -> None:
    plain = MetricValue(id="x.y", version=1, value=1.0, unit="nats", higher_is_better=None, n=3)
    assert "repeats" not in plain.plain()
    repeated = plain.model_copy(update={"repeats": 4})
    assert repeated.plain()["repeats"] == 4
    assert MetricValue.model_validate(repeated.plain()) == repeated
    assert MetricValue.model_validate(plain.plain()) == plain


def test_findings_keep_their_units_where_something_repeats() -> None:
    statistics = {"d": {"s.a": np.arange(4.0)}, "e": {"s.a": np.arange(2.0)}}
    found = Findings(statistics, units={"d": units_of("abca"), "e": units_of("ab")})
    content = to_content(found)
    assert [name for name in content.tensors if "units" in name] == ["units/d"]
    back = from_content(content)
    assert back.summed()["d"]["s.a"].tolist() == [3, 1, 2]
    assert back.summed()["e"]["s.a"].tolist() == [0, 1]
    assert to_content(Findings(statistics)).tensors.keys() == content.tensors.keys() - {"units/d"}


@pytest.mark.parametrize("values", [np.ones((2, 3)), np.float64(1), ["many"], [[1.0], [1.0, 2.0]]], ids=repr)
def test_statistics_that_are_not_one_number_per_unit_are_not_stored(values: Any) -> None:
    with pytest.raises(CellFailed, match=r"a study's statistics d/s\.a "):
        to_content(Findings({"d": {"s.a": values}}))


# -- documents -------------------------------------------------------------------------------------------------------


def tokens_of(*documents: str, context: int = 6) -> EvalTokens:
    return evaluation_tokens(documents, tokenizer(), context=context)


@given(texts, texts)
def test_texts_are_one_where_they_agree_up_to_white_space(a: str, b: str) -> None:
    ours = [f"{folded_digest_of(text, digest_of(text)):016x}" for text in (a, b)]
    assert ours == [hashlib.sha256(folded(text).encode()).hexdigest()[:16] for text in (a, b)]


def test_documents_are_one_by_their_text_or_by_what_is_measured_of_it() -> None:
    long = " ".join(f"w{i}" for i in range(9))
    found = tokens_of("w1 w2", "w3 w4", "w1\n\n w2 ", long, f"{long} w9", "w1 w2", "w4 w3", "w1 w2 w2")
    assert found.units.numbers.tolist() == [0, 1, 0, 2, 2, 0, 3, 4]
    assert (len(found.units), found.units.repeats) == (5, 3)
    # White space that the tokenizer keeps gives other tokens for the same text.
    apart = EvalTokens(found.ids[[0, 1]], found.lengths[[0, 1]], ("a" * 16, "b" * 16), 0, ("c" * 16, "c" * 16))
    assert apart.units.numbers.tolist() == [0, 0]


def test_tokens_of_documents_that_differ_are_stored_as_they_were() -> None:
    differing, meta = tokens_of("w1 w2", "w3\nw4", "w5").to_tensors()
    assert sorted(differing) == ["digests", "ids", "lengths"]
    assert meta == {"skipped": 0}
    repeated = tokens_of("w1 w2", "w3\nw4", "w3 w4")
    tensors, meta = repeated.to_tensors()
    assert sorted(tensors) == ["digests", "folded", "ids", "lengths"]
    back = EvalTokens.from_tensors(tensors, meta)
    assert (back.digests, back.folded) == (repeated.digests, repeated.folded)
    assert back.units.numbers.tolist() == [0, 1, 1]
    # What was stored before there were folded digests still knows exact copies.
    older = EvalTokens.from_tensors({name: tensor for name, tensor in tensors.items() if name != "folded"}, meta)
    assert older.units.numbers.tolist() == [0, 1, 1]


def test_a_document_may_be_in_two_domains() -> None:
    one, other = tokens_of("w1 w2", "w3"), tokens_of("w4", "w1 w2")
    assert units_together([one, other]).numbers.tolist() == [0, 1, 2, 0]


# -- the table -------------------------------------------------------------------------------------------------------


def write(results: Path, name: str, error: float, numbers: Sequence[int] | None) -> None:
    """A planted record whose documents were measured as often as `numbers` says; None: each once, weighted alike."""
    made, arrays = record(Planted(name=name, error=error, documents=24, domains=("general",), draw=3))
    stats = {key.removeprefix("general/"): np.round(values * 1024) for key, values in arrays.items()}
    times = np.bincount(COPIES, minlength=24)
    units = {"general": units_of(numbers)} if numbers else {}
    many = {k: copied(numbers, v) if numbers else v * times for k, v in stats.items()}
    kept = units["general"].summed(many) if numbers else many
    path = results / "records" / name / f"seed0-{made.cell[:12]}.json"
    sidecar = path.with_suffix(".safetensors")
    write_arrays(sidecar, {f"general/{k}": v for k, v in kept.items()})
    vouched = DocumentStatistics(file=sidecar.name, sha256=file_digest(sidecar))
    metrics = tuple(metric_values(METRICS, {"general": many}, units=units))
    changed = made.model_copy(update={"metrics": metrics, "documents": vouched})
    write_json(path, sealed(changed))
    assert read_record(path).metrics == metrics


COPIES = [*range(24), *[3] * 4, *[4] * 2, *range(10)]


def board(results: Path, numbers: Sequence[int] | None) -> Board:
    for name, error in (("a/best", 0.2), ("b/near", 0.202), ("c/far", 0.5)):
        write(results, name, error, numbers)
    return board_of(load(results))


def test_ties_and_intervals_are_those_of_the_weighted_documents(tmp_path: Path) -> None:
    ours, plain = (board(tmp_path / name, copies).groups[0] for name, copies in (("copies", COPIES), ("plain", None)))
    assert {key: (v.standing, v.p) for key, v in ours.verdicts.items()} == {
        key: (v.standing, v.p) for key, v in plain.verdicts.items()
    }
    assert {verdict.standing for verdict in ours.verdicts.values()} >= {"best", "behind"}
    for row, other in zip(ours.rows, plain.rows, strict=True):
        for key, value in row.values.items():
            assert (value.value, value.low, value.high, value.n) == (
                other.values[key].value, other.values[key].low, other.values[key].high, other.values[key].n,
            )  # fmt: skip
    assert ours.counts == {"general": "40 documents (24 distinct)"}
    assert plain.counts == {"general": "24 documents"}


@pytest.mark.parametrize("form", ["md", "terminal", "html", "latex"])
def test_tables_say_how_many_documents_were_distinct(tmp_path: Path, form: str) -> None:
    board(tmp_path, COPIES)
    assert "40 documents (24 distinct)" in leaderboard(tmp_path, form)  # type: ignore[arg-type]


def test_units_keep_their_length() -> None:
    assert len(Units(np.array([0, 1, 1, 2]))) == 3
