"""Which documents of a dataset are read: splits by text, repeats, mixtures, and evaluation texts kept out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentbench.core.errors import InvalidInput
from latentbench.core.held_out import HeldOut
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json
from latentbench.core.texts import ByText
from latentbench_adapters.mixtures import MixedDataset, MixedPart
from tests.support.project import Workbench, random_words, write_jsonl

ROOTS: Any = None


class Given(DatasetAdapter):
    """Texts that stand in the spec."""

    adapter: Literal["given"] = "given"
    documents_: tuple[str, ...]

    def identity(self, roots: Roots) -> Json:
        return {"given": self.documents_}

    def texts(self, roots: Roots) -> Iterator[str]:
        return iter(self.documents_)


def given_texts(*texts: str, **fields: Any) -> Given:
    return Given(documents_=texts, **fields)


def read(data: DatasetAdapter) -> list[str]:
    return list(data.read(ROOTS))


TEXTS = tuple(f"text {n}\nof some words" for n in range(2_000))


def by_text(part: str, share: float = 0.1) -> ByText:
    return ByText.model_validate({"part": part, "eval_share": share})


def test_the_two_sides_are_all_texts_and_share_none_whatever_set_they_are_in() -> None:
    train, evaluation = (read(given_texts(*TEXTS, by_text=by_text(part))) for part in ("train", "eval"))
    assert sorted(train + evaluation) == sorted(TEXTS)
    assert len(evaluation) == pytest.approx(200, abs=4 * (2_000 * 0.1 * 0.9) ** 0.5)
    spaced = given_texts(*(text.replace(" ", "  ") + "\n" for text in reversed(TEXTS)), by_text=by_text("eval"))
    assert {" ".join(text.split()) for text in read(spaced)} == {" ".join(text.split()) for text in evaluation}


def test_a_larger_evaluation_share_holds_a_smaller_one() -> None:
    shares = [set(read(given_texts(*TEXTS, by_text=by_text("eval", share)))) for share in (0.05, 0.1, 0.5)]
    assert shares[0] < shares[1] < shares[2]


@given(st.text(max_size=40), st.floats(0.001, 0.999))
def test_the_side_is_that_of_the_texts_sha256(text: str, share: float) -> None:
    text = text.encode(errors="replace").decode()
    folded = " ".join(text.split())
    fraction = int(hashlib.sha256(folded.encode()).hexdigest()[:16], 16) / 2**64
    assert bool(read(given_texts(text, by_text=by_text("eval", share)))) == (fraction < share)


def test_sides_that_are_cut_at_other_places_cross() -> None:
    assert by_text("train", 0.1).crosses(by_text("eval", 0.2))
    assert by_text("eval", 0.2).crosses(by_text("train", 0.1))
    assert not by_text("train", 0.2).crosses(by_text("eval", 0.1))
    assert not by_text("train", 0.1).crosses(by_text("train", 0.2))


def test_repeats_are_left_out_before_documents_are_counted() -> None:
    data = given_texts("a b", "c", "a  b\n", "d", "c", "e", distinct=True, skip=1, documents=2)
    reading = data.read(ROOTS)
    assert list(reading) == ["c", "d"]
    assert reading.notes == ("1 document left out that repeat an earlier one",)
    assert read(given_texts("a", "a")) == ["a", "a"]


def test_what_is_read_is_in_the_identity_and_nothing_new_where_nothing_new_is_said() -> None:
    plain = given_texts("a", skip=1)
    assert plain.identity_of_read(ROOTS) == {"adapter": "given", "given": ("a",), "skip": 1, "documents": None}
    assert "by_text" not in plain.plain()
    split = given_texts("a", by_text=by_text("eval", 0.2), distinct=True)
    assert split.chosen_identity(ROOTS) == {
        "given": ("a",),
        "by_text": {"part": "eval", "eval_share": 0.2},
        "distinct": True,
    }


# --- mixtures ------------------------------------------------------------------------------------------------------


def mix(*parts: tuple[DatasetAdapter, float], **fields: Any) -> MixedDataset:
    return MixedDataset(parts=tuple(MixedPart(texts=texts, weight=weight) for texts, weight in parts), **fields)


def lettered(letter: str, count: int, length: int = 1) -> Given:
    return given_texts(*(letter * length for _ in range(count)))


def test_shares_of_characters_are_exact_to_a_document_at_every_moment() -> None:
    reading = mix((lettered("a", 4000, 3), 3), (lettered("b", 4000, 50), 1)).read(ROOTS)
    given = {"a": 0, "b": 0}
    for text in islice(reading, 2_000):
        given[text[0]] += len(text)
        assert abs(given["a"] - 3 * given["b"]) <= 3 + 3 * 50
    assert "part 1 " in reading.notes[0]
    assert "75.00% wanted" in reading.notes[0]


def test_shares_of_documents_by_hand() -> None:
    data = mix((lettered("a", 9), 2), (lettered("b", 9), 1), by="documents", documents=6)
    assert "".join(read(data)) == "abaaba"


@pytest.mark.parametrize(
    ("when_out", "texts", "words"),
    [
        ("stop", "ababab", "part 2 ran out after 3 documents, which ended the mixture"),
        ("go_on", "abababaaa", "part 2 ran out after 3 documents, and the others went on"),
        ("repeat", "ababababababa"[:12], "part 2 ran out after 3 documents, and began again"),
    ],
)
def test_what_happens_when_a_part_runs_out_is_as_stated_and_told(when_out: Any, texts: str, words: str) -> None:
    data = mix((lettered("a", 6), 1), (lettered("b", 3), 1), by="documents", when_out=when_out)
    reading = data.read(ROOTS)
    found = "".join(islice(reading, 12))
    assert found.rstrip("a") == texts.rstrip("a")
    assert words in " ".join(reading.notes)


def test_a_part_without_documents_cannot_be_repeated() -> None:
    with pytest.raises(InvalidInput, match="part 2 of a mixture has no documents"):
        read(mix((lettered("a", 2), 1), (given_texts(), 1), when_out="repeat"))


def test_a_mixture_is_the_same_whatever_its_weights_sum_to_and_what_its_parts_say_of_rows() -> None:
    parts = lettered("a", 3), lettered("b", 3)
    one = mix((parts[0], 1), (parts[1], 2))
    other = mix((parts[0].model_copy(update={"context": 64, "tokens": 100}), 10), (parts[1], 20))
    assert one.identity(ROOTS) == other.identity(ROOTS)
    assert one.identity(ROOTS) != mix((parts[0], 1), (parts[1], 1)).identity(ROOTS)


def test_a_mixture_passes_on_what_its_parts_split_by_and_tell() -> None:
    part = given_texts("a", "a", "b", distinct=True, by_text=by_text("train", 0.001))
    data = mix((part, 1), by_text=by_text("train", 0.002))
    assert data.splits == (by_text("train", 0.002), by_text("train", 0.001))
    reading = data.read(ROOTS)
    assert list(reading) == ["a", "b"]
    assert reading.notes[-1] == "part 1: 1 document left out that repeat an earlier one"


def test_parts_are_read_as_strictly_as_any_texts() -> None:
    good = {"adapter": "pocket", "domain": "general"}
    assert MixedDataset.model_validate({"parts": [{"texts": good}]}).parts[0].texts.domain == "general"
    for wrong in ("general", {"adapter": "pocket"}, {**good, "trust": 1}, {"adapter": "none"}):
        with pytest.raises(ValidationError):
            MixedDataset.model_validate({"parts": [{"texts": wrong}]})
    with pytest.raises(ValidationError):
        MixedDataset.model_validate({"parts": []})


# --- evaluation texts among training texts --------------------------------------------------------------------------


def test_training_documents_with_an_evaluation_text_are_removed_and_counted() -> None:
    sets = {"lab": given_texts("x", "a b", "y", documents=2), "other": given_texts("c")}
    found = HeldOut("remove", sets).without(given_texts("a\n b", "c", "d", "y", "a b").read(ROOTS), ROOTS)
    assert list(found) == ["d", "y"]
    assert found.notes == tuple(
        f"{count} left out of training because the evaluation set {name} has the text"
        for count, name in (("2 documents", "lab"), ("1 document", "other"))
    )


def test_or_refused_with_the_document_and_the_set() -> None:
    held_out = HeldOut("refuse", {"lab": given_texts("a b")})
    with pytest.raises(InvalidInput, match=r"training document 2 \('a b'…\) has the text .* evaluation set lab"):
        list(held_out.without(given_texts("c", "a\nb").read(ROOTS), ROOTS))
    assert list(held_out.without(given_texts("c").read(ROOTS), ROOTS)) == ["c"]


def test_names_and_order_of_evaluation_sets_are_in_no_identity() -> None:
    one, two = given_texts("a"), given_texts("b", documents=1)
    first = HeldOut("remove", {"x": one, "y": two}).identity(ROOTS)
    assert first == HeldOut("remove", {"z": two, "w": one}).identity(ROOTS)
    assert first != HeldOut("remove", {"x": one}).identity(ROOTS)


# --- through the command line ---------------------------------------------------------------------------------------


def contaminated(bench: Workbench, overlap: str) -> None:
    """Of six evaluation documents two are trained on, one of them with other white space."""
    texts, others = random_words(6, seed=2), random_words(60, seed=3)
    write_jsonl(bench.root / "data/eval.jsonl", texts)
    write_jsonl(bench.root / "data/train.jsonl", [texts[0], texts[1].replace(" ", "\n"), *others])
    bench.spec(dataset__overlap=overlap)


@pytest.mark.parametrize(
    ("overlap", "told", "words"),
    [
        ("warn", "warnings", "lab: 1 of 6 evaluation documents are among the training documents"),
        (
            "remove",
            "notes",
            "training texts: 2 documents left out of training because the evaluation set lab has the text",
        ),
    ],
)
def test_a_record_tells_of_evaluation_texts_among_training_texts(
    bench: Workbench, command: Any, overlap: str, told: str, words: str
) -> None:
    contaminated(bench, overlap)
    assert command("run", "mine").code == 0
    (record,) = bench.records().values()
    assert words in getattr(record, told)
    assert len([text for text in (*record.warnings, *record.notes) if "training" in text]) == 1


def test_a_cell_that_refuses_them_fails_with_the_document(bench: Workbench, command: Any) -> None:
    contaminated(bench, "refuse")
    assert command("run", "mine").code == 3
    (record,) = bench.records().values()
    assert record.error
    assert "training document 1 (" in record.error.message


def test_sides_of_a_split_that_cross_are_refused_before_anything_runs(bench: Workbench, command: Any) -> None:
    bench.spec(
        dataset__train__by_text={"part": "train"}, dataset__eval__lab__by_text={"part": "eval", "eval_share": 0.3}
    )
    done = command("validate", "mine")
    assert done.code == 2
    assert (
        "shares texts with dataset.train: state the same `eval_share` in both, not train 0.1 and eval 0.3" in done.err
    )
    bench.spec(dataset__train__by_text={"part": "train"}, dataset__eval__lab__by_text={"part": "eval"})
    assert command("validate", "mine").code == 0
