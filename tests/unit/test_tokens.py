"""Documents to tokens: the BOS rule, packing, repetition, digests and storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from latentbench.activations.tokens import (
    EvalTokens,
    TrainTokens,
    evaluation_tokens,
    overlap,
    real_mask,
    row_opening,
    special_mask,
    training_tokens,
)
from latentbench.core.errors import InvalidInput
from tests.support.packing import packed_rows

WORDS = [f"w{i}" for i in range(50)]
BOS, EOS, PAD = 0, 1, 2


def tokenizer(bos: bool = True, eos: bool = True, pad: bool = True, adds: bool = False) -> PreTrainedTokenizerFast:
    """One id per word; `adds`: puts BOS in front by itself."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    named = {"bos_token": "<s>"} if bos else {}
    named |= {"eos_token": "</s>"} if eos else {}
    named |= {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **named)


def words(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def ids(*numbers: int) -> list[int]:
    return [n + 4 for n in numbers]


@pytest.mark.parametrize("adds", [False, True], ids=["silent", "adds-bos"])
def test_evaluation_documents_start_with_one_bos_and_are_cut_and_padded(adds: bool) -> None:
    tokens = evaluation_tokens([words(1, 2), words(*range(9))], tokenizer(adds=adds), context=4)
    assert tokens.ids.tolist() == [[BOS, *ids(1, 2), PAD], [BOS, *ids(0, 1, 2)]]
    assert tokens.ids.dtype == tokens.lengths.dtype == torch.int32
    assert tokens.lengths.tolist() == [3, 4]
    assert real_mask(tokens.lengths, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_without_a_bos_token_none_is_added_and_padding_needs_no_pad_token() -> None:
    tokens = evaluation_tokens([words(1, 2), words(1, 2, 3)], tokenizer(bos=False, pad=False), context=5)
    assert tokens.ids.tolist() == [[*ids(1, 2), EOS, EOS, EOS], [*ids(1, 2, 3), EOS, EOS]]
    assert tokens.lengths.tolist() == [2, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_document_that_was_cut_off_keeps_its_beginning_and_gets_no_eos(side: str) -> None:
    ends = tokenizer()
    ends.truncation_side = side
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokens = evaluation_tokens([words(1), words(*range(9)), words(1, 2)], ends, context=4)
    assert tokens.ids.tolist() == [[BOS, *ids(1), EOS, PAD], [BOS, *ids(0, 1, 2)], [BOS, *ids(1, 2), EOS]]


def test_documents_with_nothing_to_predict_are_left_out_and_counted() -> None:
    tokens = evaluation_tokens(["", words(1), words(2, 3), "  "], tokenizer(), context=8)
    assert tokens.skipped == 2
    assert tokens.lengths.tolist() == [2, 3]
    assert len(tokens.digests) == 2
    assert evaluation_tokens([words(1), words(2, 3)], tokenizer(bos=False), context=8).skipped == 1
    with pytest.raises(InvalidInput, match="of 2 documents none has 2 tokens"):
        evaluation_tokens(["", ""], tokenizer(), context=8)


def test_skip_and_documents_choose_from_an_endless_sequence() -> None:
    endless = (words(n % 50, 1) for n in count())
    tokens = evaluation_tokens(endless, tokenizer(), context=4, skip=7, documents=3)
    assert tokens.ids[:, 1].tolist() == ids(7, 8, 9)


def test_a_document_that_is_not_unicode_is_refused_clearly() -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        evaluation_tokens(["fine " * 3, "bad \ud800"], tokenizer(), context=4)


def test_training_rows_and_documents_in_them_begin_with_bos() -> None:
    tokens = training_tokens([words(1, 2, 3), "", words(4), words(5, 6, 7, 8)], tokenizer(), context=4, tokens=12)
    assert tokens.ids.tolist() == [[BOS, *ids(1, 2, 3)], [BOS, *ids(4), BOS, *ids(5)], [BOS, *ids(6, 7, 8)]]
    assert tokens.ids.dtype == torch.int32
    assert len(tokens.digests) == 3


def test_training_documents_without_bos_are_separated_by_eos() -> None:
    texts = [words(1, 2), words(3)]
    assert training_tokens(texts, tokenizer(bos=False), context=5, tokens=5).ids.tolist() == [
        [*ids(1, 2), EOS, *ids(3), EOS]
    ]
    assert training_tokens(texts, tokenizer(bos=False, eos=False), context=3, tokens=3).ids.tolist() == [ids(1, 2, 3)]


def test_training_stops_at_the_tokens_asked_for() -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for n in count():
            read.append(n)
            yield words(n % 40 + 10, 1, 2)

    tokens = training_tokens(endless(), tokenizer(), context=10, tokens=4001)
    assert tokens.ids.shape == (401, 10)  # rounded up to full rows
    rows = packed_rows([ids(n % 40 + 10, 1, 2) for n in range(1100)], 10, BOS)[:401]
    assert tokens.ids.tolist() == rows
    begun = sum(token >= ids(10)[0] for row in rows for token in row)
    assert len(tokens.digests) == begun  # the last reaches a row in part
    assert len(read) < begun + 256 + 1


def test_too_few_training_tokens_is_an_error_with_two_remedies_or_everything_there_is() -> None:
    texts = [words(*range(9))] * 5  # 45 words, and 11 BOS before them
    with pytest.raises(InvalidInput, match=r"hold 56 tokens .* fewer than the 60 asked for: set `tokens: 56` .*repeat"):
        training_tokens(texts, tokenizer(), context=8, tokens=60)
    assert training_tokens(texts, tokenizer(), context=8, tokens=56).ids.shape == (7, 8)
    assert training_tokens(texts, tokenizer(), context=8, tokens=60, repeat=True).ids.shape == (7, 8)
    with pytest.raises(InvalidInput, match="less than one row of 64"):
        training_tokens(texts, tokenizer(), context=64, tokens=60, repeat=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=600), st.integers(2, 17))
def test_packing_loses_and_invents_nothing(lengths: list[int], context: int) -> None:
    texts = [words(*(i % 50 for i in range(length))) for length in lengths]
    rows = packed_rows([ids(*(i % 50 for i in range(length))) for length in lengths], context, BOS)
    if not rows:
        return
    tokens = training_tokens(texts, tokenizer(), context=context, tokens=10**6, repeat=True)
    assert tokens.ids.tolist() == rows


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(2, 17), st.booleans())
def test_rows_are_those_of_sae_lens(lengths: list[int], context: int, bos: bool) -> None:
    texts = [words(*(i % 50 for i in range(length))) for length in lengths]
    documents = [torch.tensor(ids(*(i % 50 for i in range(length)))) for length in lengths]
    lead = {"begin_batch_token_id": BOS, "sequence_separator_token_id": BOS} if bos else {}
    theirs = [row.tolist() for row in concat_and_batch_sequences(iter(documents), context, **lead)]
    if theirs:
        made = training_tokens(texts, tokenizer(bos=bos, eos=False), context=context, tokens=10**6, repeat=True)
        assert made.ids.tolist() == theirs


def test_a_document_a_row_is_cut_and_padded_as_in_evaluation() -> None:
    texts = [words(1, 2), "", words(*range(9)), words(3)]
    made = training_tokens(texts, tokenizer(), context=4, tokens=9, packing="documents")
    assert made.ids.tolist() == [[BOS, *ids(1, 2), PAD], [BOS, *ids(0, 1, 2)], [BOS, *ids(3), PAD, PAD]]
    assert made.lengths is not None
    assert (made.lengths.tolist(), made.tokens, len(made.digests)) == ([3, 4, 2], 9, 3)
    assert made.real.tolist() == [[True] * 3 + [False], [True] * 4, [True, True, False, False]]
    assert training_tokens(texts, tokenizer(), context=4, tokens=4, packing="documents").tokens == 7  # whole rows
    with pytest.raises(InvalidInput, match=r"hold 9 tokens .* fewer than the 10 asked for"):
        training_tokens(texts, tokenizer(), context=4, tokens=10, packing="documents")
    assert training_tokens(texts, tokenizer(), context=4, tokens=10, packing="documents", repeat=True).tokens == 9


@pytest.mark.parametrize("adds", [False, True], ids=["silent", "adds-bos"])
def test_bos_is_left_out_everywhere_where_that_is_asked_for(adds: bool) -> None:
    made = tokenizer(adds=adds)
    rows = evaluation_tokens([words(1, 2)], made, context=4, prepend_bos=False)
    assert rows.ids.tolist() == [[*ids(1, 2), PAD, PAD]]
    for packing in ("separated", "documents"):
        trained = training_tokens([words(1, 2, 3)], made, context=3, tokens=3, packing=packing, prepend_bos=False)
        assert trained.ids.tolist() == [ids(1, 2, 3)]


def test_rows_open_with_all_that_a_tokenizer_puts_in_front_of_a_text() -> None:
    """GLM: `[gMASK]<sop>`, none of which is its BOS."""
    made = tokenizer(bos=False)
    opening = [("<unk>", 3), ("<pad>", PAD)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> <pad> $A </s>", special_tokens=[*opening, ("</s>", EOS)]
    )
    assert row_opening(made) == [3, PAD]
    assert row_opening(made, known_ids=3) == []
    trained = training_tokens([words(1, 2, 3), words(4)], made, context=4, tokens=8)
    assert trained.ids.tolist() == [[3, PAD, *ids(1, 2)], [3, PAD, *ids(3), 3]]
    assert evaluation_tokens([words(1, 2, 3)], made, context=4).ids.tolist() == [[3, PAD, *ids(1, 2)]]


def test_contamination_is_counted_by_document() -> None:
    train = training_tokens([words(1, 2), words(3, 4)], tokenizer(), context=3, tokens=6)
    evaluation = evaluation_tokens([words(3, 4), words(3, 4, 5), words(1, 2)], tokenizer(), context=3)
    assert overlap([train], evaluation) == 2
    assert train.digests[0] == hashlib.sha256(words(1, 2).encode()).hexdigest()[:16]


def test_tokens_survive_storage(tmp_path) -> None:
    evaluation = evaluation_tokens([words(n, 1) for n in range(40)] + [""], tokenizer(), context=5)
    train = training_tokens([words(n, 1) for n in range(40)], tokenizer(), context=5, tokens=60)
    padded = training_tokens([words(n, 1) for n in range(40)], tokenizer(), context=5, tokens=60, packing="documents")
    assert padded.lengths is not None
    for made, kind in ((evaluation, EvalTokens), (train, TrainTokens), (padded, TrainTokens)):
        tensors, meta = made.to_tensors()
        save_file(tensors, tmp_path / "tokens.safetensors")
        back = kind.from_tensors(load_file(tmp_path / "tokens.safetensors"), meta)
        assert torch.equal(back.ids, made.ids)
        assert back.digests == made.digests
    tensors, meta = evaluation.to_tensors()
    assert EvalTokens.from_tensors(tensors, meta).skipped == 1


def test_special_tokens_are_those_with_a_role_and_not_the_unknown_word() -> None:
    row = torch.tensor([[BOS, 5, EOS, PAD, 3]], dtype=torch.int32)
    assert special_mask(row, tokenizer()).tolist() == [[True, False, True, True, False]]
    assert special_mask(row, tokenizer(bos=False, pad=False)).tolist() == [[False, False, True, False, False]]
    assert not special_mask(row, tokenizer(bos=False, eos=False, pad=False)).any()


def test_tokens_that_no_vocabulary_has_are_refused() -> None:
    class Wild:
        truncation_side, bos_token_id, eos_token_id = "left", None, None

        def __call__(self, texts: str | list[str], **_: object) -> dict[str, list]:
            row = [1, 2**32 - 1]
            return {"input_ids": row if isinstance(texts, str) else [row for _ in texts]}

    for tokenise in (
        lambda: evaluation_tokens(["a"], Wild(), context=4),  # type: ignore[arg-type]
        lambda: training_tokens(["a"], Wild(), context=2, tokens=2),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput, match="starts with 'a' the token 4294967295, which no vocabulary has"):
            tokenise()
