"""Tokens before a certain cut are those of the whole text, for tokenizers of many makes; what is not certain is refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from latentbench.activations import tokens as module
from latentbench.activations.token_boundaries import TokenBoundaries
from latentbench.activations.tokens import evaluation_tokens, training_tokens
from latentbench.core.paths import Roots
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support import tokenizer_makes as made
from tests.support.packing import packed_rows
from tests.support.tokenizer_makes import LLAMA_3, MADE, SPACES, WORDS

REAL = Path(__file__).parents[3] / "shared/real"
NAMES = [*MADE, "pocket", pytest.param("stories260k", marks=pytest.mark.skipif(not REAL.is_dir(), reason="not here"))]
TEXTS = st.lists(st.tuples(st.sampled_from(WORDS) | st.text(max_size=3), st.sampled_from(SPACES)), max_size=40).map(
    lambda parts: "".join(word + space for word, space in parts).encode(errors="ignore").decode()
)


@lru_cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    if name == "pocket":
        return PocketModel().load_tokenizer(Roots(Path()))  # type: ignore[return-value]
    return AutoTokenizer.from_pretrained(REAL / name) if name == "stories260k" else MADE[name]()


@lru_cache
def cuts(name: str) -> TokenBoundaries:
    found = TokenBoundaries.of(tokenizer(name))
    assert found is not None
    return found


def ids(name: str, text: str) -> list[int]:
    return tokenizer(name)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_cut_before_a_common_word(name: str) -> None:
    text = "cat the cat the cat the"
    assert cuts(name).last(text, len(text)) > 0
    assert cuts(name).last("the", 3) == cuts(name).last(" the", 4) == cuts(name).last("", 0) == 0
    assert text[cuts(name).last(text, 9) :].startswith(" ")
    assert cuts(name).last(text, cuts(name).last(text, 9)) == cuts(name).last(text, 9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_tokens_before_every_cut_are_the_first_of_the_whole_text(name: str, text: str) -> None:
    whole, end = ids(name, text), len(text)
    while (end := cuts(name).last(text, end)) > 0:
        before = ids(name, text[:end])
        assert whole[: len(before)] == before
        end -= 1


def whole_rows(name: str, texts: list[str], context: int) -> list[list[int]]:
    """Evaluation rows from texts tokenised whole."""
    options = {"truncation": True, "max_length": context + 1} if tokenizer(name).truncation_side == "right" else {}
    rows = tokenizer(name)(texts, **options)["input_ids"]
    bos = [tokenizer(name).bos_token_id]
    rows = [(row if row[:1] == bos else [*bos, *row])[:context] for row in rows]
    return [row for row in rows if len(row) > 1]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), context=st.integers(2, 9))
def test_evaluation_rows_are_those_of_whole_texts(name: str, side: str, texts: list[str], context: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer(name), "truncation_side", side)
        patch.setattr(module, "_CHARACTERS_PER_TOKEN", 1)
        expected = whole_rows(name, ["the cat the", *texts], context)
        found = evaluation_tokens(["the cat the", *texts], tokenizer(name), context=context)
    assert [row[:n].tolist() for row, n in zip(found.ids, found.lengths, strict=True)] == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), context=st.integers(2, 7), rows=st.integers(1, 9))
def test_training_rows_are_those_of_whole_texts(name: str, texts: list[str], context: int, rows: int) -> None:
    bos = [tokenizer(name).bos_token_id]
    whole = [ids(name, text) for text in texts]
    expected = packed_rows(whole, context, *bos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHARACTERS_PER_TOKEN", 1)
        patch.setattr(module, "_CHARACTERS_AT_ONCE", 20)
        if expected:
            found = training_tokens(texts, tokenizer(name), context=context, tokens=rows * context, repeat=True)
            assert found.ids.tolist() == expected[:rows]


REFUSED = {
    "an added token with a space": lambda: made.with_added_tokens(made.byte_level(), AddedToken("the cat")),
    "an added token with what spaces become": lambda: made.with_added_tokens(made.llama(), AddedToken("e▁c")),
    "bytes in whole texts": lambda: made.bpe(pre_tokenizers.ByteLevel(use_regex=False)),
    "a rule that takes lines": lambda: made.byte_level(r"[^\n]+|\n"),
    "a rule that looks ahead": lambda: made.byte_level(LLAMA_3.replace(r"\p{L}+", r"\p{L}+(?!.* z)")),
    "part of a known rule": lambda: made.byte_level(r"[^\r\n\p{L}\p{N}]?\p{Lu}+|\s+"),
    "merges that are skipped": lambda: made.llama(ignore_merges=True),
    "random merges": lambda: made.llama(dropout=0.5),
    "words with endings": lambda: made.llama(end_of_word_suffix="x"),
    "characters composed in whole texts": lambda: made.bpe(
        pre_tokenizers.Metaspace(split=False), normalizers.NFC(), fitted_with=pre_tokenizers.Metaspace()
    ),
    "a normaliser that takes lines": lambda: made.bpe(
        pre_tokenizers.WhitespaceSplit(), normalizers.Replace(Regex("e.*z"), "")
    ),
    "another space": lambda: made.bpe(pre_tokenizers.WhitespaceSplit(), normalizers.Replace(" ", "_")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_look_further_is_refused(name: str) -> None:
    assert TokenBoundaries.of(REFUSED[name]()) is None


def test_a_pre_tokenizer_in_python_is_refused() -> None:
    class Lines:
        def pre_tokenize(self, text: object) -> None: ...

    found = made.byte_level()
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Lines())
    assert TokenBoundaries.of(found) is None


def test_a_tokenizer_with_a_way_of_its_own_is_refused() -> None:
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, *args: object, **options: object) -> object:
            return super()._encode_plus(*args, **options)

    backend = made.byte_level().backend_tokenizer
    assert TokenBoundaries.of(PreTrainedTokenizerFast(tokenizer_object=backend)) is not None
    assert TokenBoundaries.of(Own(tokenizer_object=backend)) is None


def test_where_a_merge_leads_across_is_no_cut() -> None:
    """With the piece `a▁b` the tokens before a space depend on what follows it, after `a` alone."""
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", "a", "b", "c", "▁", "▁b", "a▁b"])}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "b"), ("a", "▁b")], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    found = TokenBoundaries.of(made.fast(backend))
    assert found is not None
    assert [found.last(text, 2) for text in ("ca b", "cc b", "cb b", "cx b")] == [0, 2, 2, 0]
    assert backend.encode("ca b").ids[:2] != backend.encode("ca").ids


def test_a_long_text_is_not_tokenised_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for one row of it, nor for the few tokens of training left; without a cut it has to be."""
    lengths: list[int] = []
    before = module._Beginnings._ids

    def spied(self: module._Beginnings, texts: list[str], limit: int) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return before(self, texts, limit)

    monkeypatch.setattr(module._Beginnings, "_ids", spied)
    long, solid = "the cat " * 50_000, "thecat" * 5_000
    evaluation_tokens([long], tokenizer("pocket"), context=64)
    training_tokens([long], tokenizer("pocket"), context=64, tokens=640)
    assert sum(lengths) < 20_000
    lengths.clear()
    evaluation_tokens(["the " + solid, solid], tokenizer("pocket"), context=64)
    assert sorted(lengths) == [3, len(solid), len(solid) + 4]
