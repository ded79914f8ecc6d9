"""From a dataset of a spec to rows of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentbench.activations.tokens import EvalTokens, TrainTokens, evaluation_tokens, training_tokens
from latentbench.core.held_out import HeldOut
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_rows(
    data: DatasetAdapter,
    roots: Roots,
    tokenizer: PreTrainedTokenizerBase,
    known_ids: int | None,
    *,
    held_out: HeldOut | None = None,
    tokens: int | None = None,
    repeat: bool | None = None,
) -> TrainTokens:
    """The rows of a dataset for training; `tokens` and `repeat` default to what the dataset says. Raises as `training_tokens`."""
    texts = data.read(roots)
    if held_out is not None:
        texts = held_out.without(texts, roots)
    return training_tokens(
        texts,
        tokenizer,
        context=data.context,
        tokens=int(data.tokens or 0) if tokens is None else tokens,
        repeat=data.repeat if repeat is None else repeat,
        known_ids=known_ids,
        packing=data.packing,
        prepend_bos=data.prepend_bos,
    )


def evaluation_rows(
    data: DatasetAdapter, roots: Roots, tokenizer: PreTrainedTokenizerBase, known_ids: int | None
) -> EvalTokens:
    """One row for each document of a dataset for evaluation. Raises as `evaluation_tokens`."""
    return evaluation_tokens(
        data.read(roots), tokenizer, context=data.context, known_ids=known_ids, prepend_bos=data.prepend_bos
    )
