"""Documents to tokens: the BOS rule, packing, repetition, digests and storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from latentbench.activations.tokens import (
    EvalTokens,
    TrainTokens,
    evaluation_tokens,
    overlap,
    real_mask,
    special_mask,
    training_tokens,
)
from latentbench.core.errors import InvalidInput

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


def test_training_rows_are_documents_behind_bos_end_to_end() -> None:
    tokens = training_tokens([words(1, 2, 3), "", words(4), words(5, 6)], tokenizer(), context=3, tokens=9)
    assert tokens.ids.tolist() == [[BOS, *ids(1, 2)], [ids(3)[0], BOS, ids(4)[0]], [BOS, *ids(5, 6)]]
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
            yield words(n % 50, 1, 2)

    tokens = training_tokens(endless(), tokenizer(), context=10, tokens=4001)
    assert tokens.ids.shape == (401, 10)  # rounded up to full rows
    assert len(tokens.digests) == 1003  # 4 tokens per document; the last reaches a row in part
    assert len(read) < 1003 + 256 + 1


def test_too_few_training_tokens_is_an_error_with_two_remedies_or_everything_there_is() -> None:
    texts = [words(*range(9))] * 5  # 50 tokens with BOS
    with pytest.raises(InvalidInput, match=r"hold 48 tokens .* fewer than the 60 asked for: set `tokens: 48` .*repeat"):
        training_tokens(texts, tokenizer(), context=8, tokens=60)
    assert training_tokens(texts, tokenizer(), context=8, tokens=48).ids.shape == (6, 8)
    assert training_tokens(texts, tokenizer(), context=8, tokens=60, repeat=True).ids.shape == (6, 8)
    with pytest.raises(InvalidInput, match="less than one row of 64"):
        training_tokens(texts, tokenizer(), context=64, tokens=60, repeat=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=600), st.integers(2, 17))
def test_packing_loses_and_invents_nothing(lengths: list[int], context: int) -> None:
    texts = [words(*(i % 50 for i in range(length))) for length in lengths]
    flat = [t for length in lengths for t in (BOS, *ids(*(i % 50 for i in range(length))))]
    rows = len(flat) // context
    if rows == 0:
        return
    tokens = training_tokens(texts, tokenizer(), context=context, tokens=len(flat) * 2, repeat=True)
    assert tokens.ids.flatten().tolist() == flat[: rows * context]


def test_contamination_is_counted_by_document() -> None:
    train = training_tokens([words(1, 2), words(3, 4)], tokenizer(), context=3, tokens=6)
    evaluation = evaluation_tokens([words(3, 4), words(3, 4, 5), words(1, 2)], tokenizer(), context=3)
    assert overlap(train, evaluation) == 2
    assert train.digests[0] == hashlib.sha256(words(1, 2).encode()).hexdigest()[:16]


def test_tokens_survive_storage(tmp_path) -> None:
    evaluation = evaluation_tokens([words(n, 1) for n in range(40)] + [""], tokenizer(), context=5)
    train = training_tokens([words(n, 1) for n in range(40)], tokenizer(), context=5, tokens=60)
    for made, kind in ((evaluation, EvalTokens), (train, TrainTokens)):
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
        truncation_side, bos_token_id = "left", None

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, 2**32 - 1] for _ in texts]}

    for tokenise in (
        lambda: evaluation_tokens(["a"], Wild(), context=4),  # type: ignore[arg-type]
        lambda: training_tokens(["a"], Wild(), context=2, tokens=2),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput, match="starts with 'a' the token 4294967295, which no vocabulary has"):
            tokenise()
