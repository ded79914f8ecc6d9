"""Documents to tokens, for evaluation (one row per document) and for training (packed rows).

The beginning-of-sequence rule is the same for both and for every model: a document starts with the tokenizer's BOS
whenever the tokenizer has one, also where it does not add it by itself (GPT-2, Pythia), because models show their
usual behaviour, and SAEs are usually trained, behind one. A tokenizer without BOS (Qwen2) gets none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.border import foreign
from harness.errors import InvalidInput
from harness.section import Json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 256
_LARGEST_ID = 2**31 - 1
"""Rows are kept as int32."""
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


@dataclass(frozen=True)
class EvalTokens:
    """Evaluation documents, one per row."""

    ids: Tensor
    """[documents, context] int32, right padded."""
    lengths: Tensor
    """[documents] int32: real tokens of each document, BOS included; at least 2."""
    digests: tuple[str, ...]
    """First 16 hexadecimal digits of each document's sha256 (of the whole text, however much of it fits)."""
    skipped: int
    """Documents left out because they have fewer than 2 tokens, so nothing to predict."""

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them."""
        tensors = {"ids": self.ids, "lengths": self.lengths, "digests": _pack_digests(self.digests)}
        return tensors, {"skipped": self.skipped}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> EvalTokens:
        """The inverse of `to_tensors`."""
        digests = _unpack_digests(tensors["digests"])
        return EvalTokens(tensors["ids"], tensors["lengths"], digests, int(meta["skipped"]))


@dataclass(frozen=True)
class TrainTokens:
    """Training documents, concatenated and cut into rows without padding."""

    ids: Tensor
    """[rows, context] int32."""
    digests: tuple[str, ...]
    """As in EvalTokens, of every document that reached a row at least in part."""

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them."""
        return {"ids": self.ids, "digests": _pack_digests(self.digests)}, {}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> TrainTokens:
        """The inverse of `to_tensors`."""
        return TrainTokens(tensors["ids"], _unpack_digests(tensors["digests"]))


def evaluation_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    documents: int | None = None,
    skip: int = 0,
) -> EvalTokens:
    """One row per document: its first `context` tokens, BOS included.

    Reads `documents` documents after the first `skip`. Raises InvalidInput when none of them has 2 tokens.
    """
    rows: list[list[int]] = []
    digests: list[str] = []
    skipped = 0
    for text, ids in _tokenized(_selected(texts, skip, documents), tokenizer, special=True, limit=context):
        row = _with_bos(ids, tokenizer)[:context]
        if len(row) < 2:
            skipped += 1
            continue
        rows.append(row)
        digests.append(_digest(text))
    if not rows:
        raise InvalidInput(f"nothing to evaluate on: of {skipped} documents none has 2 tokens or more")
    return EvalTokens(*_padded(rows, context, _padding(tokenizer)), tuple(digests), skipped)


def training_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    tokens: int,
    repeat: bool = False,
    documents: int | None = None,
    skip: int = 0,
) -> TrainTokens:
    """Packed rows of `context` tokens holding at least `tokens` tokens, special ones included.

    Each document is led by BOS, or followed by EOS where the tokenizer has no BOS. Attention is not cut at document
    borders, as is usual for SAE training. Raises InvalidInput when the documents end before `tokens`, unless `repeat`:
    then every full row there is.
    """
    wanted = math.ceil(tokens / context) * context
    parts: list[np.ndarray] = []
    digests: list[str] = []
    held = 0
    for text, ids in _tokenized(_selected(texts, skip, documents), tokenizer, special=False, limit=None):
        if not ids:
            continue
        parts.append(np.asarray(_delimited(ids, tokenizer), dtype=np.int32))
        digests.append(_digest(text))
        held += len(parts[-1])
        if held >= wanted:
            break
    available = min(held, wanted) // context * context
    if available == 0 or (available < wanted and not repeat):
        raise InvalidInput(_too_few(available, tokens, context))
    flat = np.concatenate(parts)[:available]
    return TrainTokens(torch.from_numpy(flat.reshape(-1, context)), tuple(digests))


def overlap(train: TrainTokens, evaluation: EvalTokens) -> int:
    """How many evaluation documents are, letter for letter, among the training documents."""
    seen = set(train.digests)
    return sum(digest in seen for digest in evaluation.digests)


def special_mask(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Bool, shaped like `ids`: where a token is BOS, EOS, PAD, SEP or CLS.

    Their hidden states are excluded from SAE training and from reconstruction metrics: the norm at BOS is often a
    hundred times that of a word. Tokens that are special in other ways (chat turns) are ordinary here, as in sae-lens.
    """
    special = {getattr(tokenizer, name, None) for name in _SPECIAL} - {None}
    return torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))


def check_vocabulary(ids: Tensor, model: PreTrainedModel) -> None:
    """Raises InvalidInput for a token that the model has no embedding for; on an accelerator it would end the process."""
    largest, rows = int(ids.max()), model.config.get_text_config().vocab_size
    if largest >= rows:
        raise InvalidInput(
            f"the tokenizer gives the token {largest}, but the model's vocabulary has {rows}: they do not belong together"
        )


def real_mask(lengths: Tensor, context: int) -> Tensor:
    """[documents, context] bool: True at tokens, False at padding."""
    return torch.arange(context, device=lengths.device) < lengths[:, None]


def _too_few(available: int, tokens: int, context: int) -> str:
    if available == 0:
        return f"the training documents hold less than one row of {context} tokens"
    return (
        f"the training documents hold {available:,} tokens (in full rows of {context}), fewer than the {tokens:,} "
        f"asked for: set `tokens: {available}` or less, or `repeat: true` to go through them more than once"
    )


def _selected(texts: Iterable[str], skip: int, documents: int | None) -> Iterator[str]:
    return map(_checked, islice(texts, skip, None if documents is None else skip + documents))


def _tokenized(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, *, special: bool, limit: int | None
) -> Iterator[tuple[str, list[int]]]:
    """Each text with its token ids, tokenised many at a time; `limit` saves work on long documents."""
    options: dict[str, Json] = {"add_special_tokens": special, "return_attention_mask": False, "verbose": False}
    if limit is not None and tokenizer.truncation_side == "right":
        # One token more than wanted: an EOS the tokenizer puts behind what it has cut off must not stay in mid-text.
        options |= {"truncation": True, "max_length": limit + 1}
    first = 1
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        where = f"documents {first} to {first + len(batch) - 1}"
        with foreign(f"the tokenizer cannot encode {where}", "look at the patterns of its tokenizer.json"):
            ids = tokenizer(batch, **options)["input_ids"]
        if (largest := max((max(row) for row in ids if row), default=0)) > _LARGEST_ID:
            raise InvalidInput(f"the tokenizer gives {where} the token {largest}, which no vocabulary has")
        yield from zip(batch, ids, strict=True)
        first += len(batch)


def _with_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _delimited(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.bos_token_id is not None:
        return _with_bos(ids, tokenizer)
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    # Masked everywhere, so any id of the vocabulary will do.
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    return int(next(i for i in ids if i is not None))


def _padded(rows: list[list[int]], context: int, padding: int) -> tuple[Tensor, Tensor]:
    ids = np.full((len(rows), context), padding, dtype=np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(ids), torch.tensor([len(row) for row in rows], dtype=torch.int32)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a document is not valid Unicode ({error.reason}): {text[:40]!r}…") from error
    return text


def _pack_digests(digests: tuple[str, ...]) -> Tensor:
    words = np.array([int(digest, 16) for digest in digests], dtype=np.uint64)
    return torch.from_numpy(words.view(np.int64))


def _unpack_digests(packed: Tensor) -> tuple[str, ...]:
    return tuple(f"{word:016x}" for word in packed.numpy().view(np.uint64).tolist())
