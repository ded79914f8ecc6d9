"""Documents to tokens, for evaluation (one row per document) and for training (packed rows), and the digests of documents.

How a row opens is the same for both and for every model: with what the tokenizer puts in front of a text by itself, and with
its BOS whenever it has one, also where it does not add it (GPT-2, Pythia), because models show their usual behaviour, and
SAEs are usually trained, behind one. A tokenizer without BOS (Qwen2) gets none, and so does one whose BOS the model does
not know. docs/tokens.md says how others pack rows and why it is done like this. Digests say that two documents are letter
for letter the same.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.token_boundaries import TokenBoundaries
from latentbench.activations.vocabulary import check_ids, known, padding_id
from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.core.text_digests import digest_of, folded_digest_of
from latentbench.core.texts import notes_of
from latentbench.statistics.units import Units, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Digests(Sequence[str]):
    """The first 16 hexadecimal digits of each document's sha256, in the order of the documents; 8 bytes for each."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    @staticmethod
    def of(digests: Iterable[str]) -> Digests:
        """From hexadecimal digits."""
        if isinstance(digests, Digests):
            return digests
        return Digests(np.array([int(digest, 16) for digest in digests], dtype=np.uint64))

    @staticmethod
    def from_tensor(packed: Tensor) -> Digests:
        """The inverse of `to_tensor`."""
        return Digests(packed.numpy().view(np.uint64))

    def to_tensor(self) -> Tensor:
        """[documents] int64 with the same bits."""
        return torch.from_numpy(self._words.view(np.int64))

    def among(self, others: Sequence[Digests]) -> int:
        """How many of these documents are among any of the others."""
        found = np.zeros(len(self._words), dtype=bool)
        for other in others:
            found |= np.isin(self._words, other._words)
        return int(found.sum())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Digests: ...
    def __getitem__(self, index: int | slice) -> str | Digests:
        return Digests(self._words[index]) if isinstance(index, slice) else f"{int(self._words[index]):016x}"

    def __len__(self) -> int:
        return len(self._words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def collected(words: array[int]) -> Digests:
    """What `digest_of` gave, one after the other, in an array of type Q."""
    return Digests(np.frombuffer(words, dtype=np.uint64))


_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 256, 1 << 20
_CHARACTERS_PER_TOKEN = 16
"""More than nearly all texts have, so that the first piece of a long one nearly always holds the tokens wanted."""
_LARGEST_ID = 2**31 - 1
"""Rows are kept as int32."""
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


Packing = Literal["separated", "documents"]
"""How training documents come into rows."""


@dataclass(frozen=True)
class EvalTokens:
    """Evaluation documents, one per row."""

    ids: Tensor
    """[documents, context] int32, right padded."""
    lengths: Tensor
    """[documents] int32: real tokens of each document, BOS included; at least 2."""
    digests: Sequence[str]
    """First 16 hexadecimal digits of each document's sha256 (of the whole text, however much of it fits)."""
    skipped: int
    """Documents left out because they have fewer than 2 tokens, so nothing to predict."""
    folded: Sequence[str] = ()
    """The digest of each text with its white space folded; empty where no document repeats another."""
    notes: tuple[str, ...] = ()
    """What there is to know of the texts (`Reading.notes`)."""

    @cached_property
    def units(self) -> Units:
        """Which documents are one: their texts differ in white space alone, or not before `context` cuts them off."""
        return units_together([self])

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them."""
        tensors = {"ids": self.ids, "lengths": self.lengths, "digests": Digests.of(self.digests).to_tensor()}
        tensors |= {"folded": Digests.of(self.folded).to_tensor()} if self.folded else {}
        return tensors, {"skipped": self.skipped} | _notes(self.notes)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> EvalTokens:
        """The inverse of `to_tensors`."""
        digests = Digests.from_tensor(tensors["digests"])
        folded = Digests.from_tensor(tensors["folded"]) if "folded" in tensors else ()
        notes = tuple(meta.get("notes", ()))
        return EvalTokens(tensors["ids"], tensors["lengths"], digests, int(meta["skipped"]), folded, notes)


@dataclass(frozen=True)
class TrainTokens:
    """Training documents in rows: several in one, cut where it is full, or one in each."""

    ids: Tensor
    """[rows, context] int32."""
    digests: Sequence[str]
    """Digests as in `EvalTokens`, one for every document that reached a row at least in part."""
    lengths: Tensor | None = None
    """[rows] int32: tokens of each row before its padding, on the right; None where all rows are full."""
    notes: tuple[str, ...] = ()
    """What there is to know of the texts (`Reading.notes`)."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows, special ones included and padding not."""
        return self.ids.numel() if self.lengths is None else int(self.lengths.sum())

    @property
    def real(self) -> Tensor:
        """[rows, context] bool: not padding."""
        if self.lengths is None:
            return torch.ones_like(self.ids, dtype=torch.bool)
        return real_mask(self.lengths, self.ids.shape[1])

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Tensors for safetensors and the metadata beside them."""
        tensors = {"ids": self.ids, "digests": Digests.of(self.digests).to_tensor()}
        tensors |= {} if self.lengths is None else {"lengths": self.lengths}
        return tensors, _notes(self.notes)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Json]) -> TrainTokens:
        """The inverse of `to_tensors`."""
        digests = Digests.from_tensor(tensors["digests"])
        return TrainTokens(tensors["ids"], digests, tensors.get("lengths"), tuple(meta.get("notes", ())))


def evaluation_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    documents: int | None = None,
    skip: int = 0,
    known_ids: int | None = None,
    prepend_bos: bool = True,
) -> EvalTokens:
    """One row per document: its first `context` tokens, what opens it included unless `prepend_bos` is false.

    Reads `documents` documents after the first `skip`. `known_ids` are the rows of the model's embedding: padding and BOS
    are ids below it. Raises InvalidInput when a document holds another, and when none of them has 2 tokens.
    """
    beginnings, padding = _Beginnings(tokenizer, special=prepend_bos), padding_id(tokenizer, known_ids)
    rows, lengths, digests, folded, skipped = array("i"), array("i"), array("Q"), array("Q"), 0
    for batch in _batches(texts, skip, documents):
        for document, ids in zip(batch, beginnings.of(batch, context), strict=True):
            row = (_with_bos(ids, tokenizer, known_ids) if prepend_bos else ids)[:context]
            if len(row) < 2:
                skipped += 1
                continue
            check_ids(row, tokenizer, known_ids, f"{document}: ")
            rows.extend(row + [padding] * (context - len(row)))
            lengths.append(len(row))
            digests.append(document.digest)
            folded.append(folded_digest_of(document.text, document.digest))
    if not lengths:
        raise InvalidInput(f"nothing to evaluate on: of {skipped} documents none has 2 tokens or more")
    ids_of_all, lengths_of_all = _tensor(rows).view(-1, context), _tensor(lengths)
    made = EvalTokens(ids_of_all, lengths_of_all, collected(digests), skipped, collected(folded), notes_of(texts))
    return made if made.units.repeats else replace(made, folded=())


def training_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    tokens: int,
    repeat: bool = False,
    documents: int | None = None,
    skip: int = 0,
    known_ids: int | None = None,
    packing: Packing = "separated",
    prepend_bos: bool = True,
) -> TrainTokens:
    """Rows of `context` tokens holding at least `tokens` tokens, special ones included and padding not.

    `separated`: documents stand end to end, and every row and every document in a row opens as an evaluation row does, as
    sae-lens packs them; without anything that opens a row (or without `prepend_bos`) EOS follows each document instead.
    Attention is not cut at document borders. `documents`: one document a row, cut at `context` and padded on the right.

    Raises InvalidInput when a document holds an id that is not below `known_ids`, the rows of the model's embedding, and when
    the documents end before `tokens`, unless `repeat`: then every full row (every document) there is.
    """
    beginnings = _Beginnings(tokenizer, special=False)
    opening = row_opening(tokenizer, known_ids) if prepend_bos else []
    rows: _PackedRows | _DocumentRows
    if packing == "documents":
        rows = _DocumentRows(context, tokens, opening, padding_id(tokenizer, known_ids))
    else:
        eos = known(tokenizer.eos_token_id, known_ids)
        rows = _PackedRows(context, tokens, opening, [] if opening or eos is None else [eos])
    digests = array("Q")
    for batch in _batches(texts, skip, documents):
        for document, ids in zip(batch, beginnings.of(batch, rows.longest), strict=True):
            if ids and rows.wanted > 0:
                check_ids(ids, tokenizer, known_ids, f"{document}: ")
                rows.add(ids)
                digests.append(document.digest)
        if rows.wanted <= 0:
            break
    if rows.available == 0 or (rows.wanted > 0 and not repeat):
        raise InvalidInput(_too_few(rows.available, tokens, context))
    return replace(rows.made(collected(digests)), notes=notes_of(texts))


class _PackedRows:
    """Documents end to end in full rows."""

    def __init__(self, context: int, tokens: int, opening: list[int], ending: list[int]) -> None:
        self._context, self._total = context, math.ceil(tokens / context) * context
        self._opening, self._ending = opening[: context - 1], ending
        self._flat = array("i")

    @property
    def wanted(self) -> int:
        """Tokens that are still missing."""
        return self._total - len(self._flat)

    @property
    def longest(self) -> int:
        """How many tokens of a document are needed at most."""
        return self.wanted

    @property
    def available(self) -> int:
        """Tokens in full rows."""
        return min(len(self._flat), self._total) // self._context * self._context

    def add(self, ids: list[int]) -> None:
        """Takes a document: a piece to the end of the row, and a piece for every further row."""
        done, ids = 0, [*ids, *self._ending]
        while done < len(ids):
            room = self._context - len(self._flat) % self._context
            # Where only the opening fits it ends the row, and opens the next one again: in front of the same token.
            opening = [] if ids[done : done + len(self._opening)] == self._opening else self._opening
            piece = ids[done : done + max(0, room - len(opening))]
            self._flat.extend([*opening, *piece][:room])
            done += len(piece)

    def made(self, digests: Digests) -> TrainTokens:
        """The rows. To be called once."""
        del self._flat[self.available :]
        return TrainTokens(_tensor(self._flat).view(-1, self._context), digests)


class _DocumentRows:
    """A document in each row."""

    def __init__(self, context: int, tokens: int, opening: list[int], padding: int) -> None:
        self._context, self._total, self._opening, self._padding = context, tokens, opening[: context - 1], padding
        self._flat, self._lengths = array("i"), array("i")
        self.longest = context
        """How many tokens of a document are needed at most."""
        self.available = 0
        """Tokens of all rows."""

    @property
    def wanted(self) -> int:
        """Tokens that are still missing."""
        return self._total - self.available

    def add(self, ids: list[int]) -> None:
        """Takes a document."""
        opening = [] if ids[: len(self._opening)] == self._opening else self._opening
        row = [*opening, *ids][: self._context]
        self._flat.extend([*row, *[self._padding] * (self._context - len(row))])
        self._lengths.append(len(row))
        self.available += len(row)

    def made(self, digests: Digests) -> TrainTokens:
        """The rows. To be called once."""
        return TrainTokens(_tensor(self._flat).view(-1, self._context), digests, _tensor(self._lengths))


def row_opening(tokenizer: PreTrainedTokenizerBase, known_ids: int | None = None) -> list[int]:
    """What every row begins with: what the tokenizer puts in front of a text, led by BOS where it has one.

    Empty for a tokenizer that puts nothing there and has no BOS, or whose tokens the model does not know.
    """
    plain, whole = (tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"] for special in (False, True))
    # What stands behind the text is told apart by where the text's own tokens are, seen from the end.
    starts = [start for start in range(len(whole) - len(plain) + 1) if whole[start : start + len(plain)] == plain]
    opening = _with_bos(whole[: max(starts, default=0)], tokenizer, known_ids)
    return opening if all(known(token, known_ids) is not None for token in opening) else []


def overlap(trained: Sequence[TrainTokens], evaluation: EvalTokens) -> int:
    """How many evaluation documents are, letter for letter, among the documents that any of them was trained on."""
    return Digests.of(evaluation.digests).among([Digests.of(train.digests) for train in trained])


def units_together(domains: Sequence[EvalTokens]) -> Units:
    """The units of the documents of several domains, one domain after the other: a document may be in two of them."""
    texts = chain.from_iterable(tokens.folded or tokens.digests for tokens in domains)
    return units_of(texts, chain.from_iterable(map(_rows, domains)))


def special_mask(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Bool, shaped like `ids`: where a token is BOS, EOS, PAD, SEP or CLS.

    Their hidden states are excluded from SAE training and from reconstruction metrics: the norm at BOS is often a
    hundred times that of a word. Tokens that are special in other ways (chat turns) are ordinary here, as in sae-lens.
    """
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for special in {getattr(tokenizer, name, None) for name in _SPECIAL} - {None}:
        mask |= ids == special  # one byte a token, where `isin` makes one for each id
    return mask


def real_mask(lengths: Tensor, context: int) -> Tensor:
    """[documents, context] bool: True at tokens, False at padding."""
    return torch.arange(context, device=lengths.device) < lengths[:, None]


def _too_few(available: int, tokens: int, context: int) -> str:
    if available == 0:
        return f"the training documents hold less than one row of {context} tokens"
    return (
        f"the training documents hold {available:,} tokens (in rows of {context}), fewer than the {tokens:,} "
        f"asked for: set `tokens: {available}` or less, or `repeat: true` to go through them more than once"
    )


@dataclass(frozen=True)
class _Document:
    text: str
    digest: int

    def __str__(self) -> str:
        return f"the document that starts with {self.text[:40]!r}"


def _batches(texts: Iterable[str], skip: int, documents: int | None) -> Iterator[list[_Document]]:
    """The chosen documents, many short ones or few long ones at a time, so that none waits for long."""
    batch: list[_Document] = []
    characters = 0
    for text in islice(texts, skip, None if documents is None else skip + documents):
        batch.append(_Document(text, digest_of(text)))
        characters += len(text)
        if len(batch) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Beginnings:
    """The first tokens of documents, exactly those of the whole texts, without tokenising much more than them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._truncates = special and tokenizer.truncation_side == "right"

    def of(self, documents: Sequence[_Document], limit: int) -> list[list[int]]:
        """Token ids of each document: all of them, or the first `limit` and perhaps more of a document that has more.

        What the tokenizer itself puts behind a text stands behind the first `limit` where it does not end the document.
        """
        growing = [self._growing(document.text, limit) for document in documents]
        heads = [next(texts) for texts in growing]
        rows = self._ids(heads, limit)
        for number, document in enumerate(documents):
            while len(heads[number]) < len(document.text) and len(rows[number]) < self._enough(limit):
                heads[number] = next(growing[number])
                rows[number] = self._ids([heads[number]], limit)[0]
        return rows

    def _growing(self, text: str, limit: int) -> Iterator[str]:
        """Longer and longer beginnings of a text whose tokens are the text's first ones, and then the text itself."""
        size, done = limit * _CHARACTERS_PER_TOKEN, 0
        while size < len(text) and self._cuts is not None:
            if (cut := self._cuts.last(text, size)) > done:
                yield text[:cut]
                done = cut
            size *= 4  # so that trying shorter pieces first costs less than the longest one does
        yield text

    def _enough(self, limit: int) -> int:
        """How many ids a beginning must have so that `limit` of them are no ids that stand behind it."""
        added = self._tokenizer.num_special_tokens_to_add() if self._special else 0
        return limit + 1 if self._truncates else limit + added

    def _ids(self, texts: list[str], limit: int) -> list[list[int]]:
        options: dict[str, Json] = {"add_special_tokens": self._special, "return_attention_mask": False}
        if self._truncates:
            # One token more than wanted: an EOS the tokenizer puts behind what it has cut off must not stay in mid-text.
            options |= {"truncation": True, "max_length": limit + 1}
        first = f"texts, the first of which starts with {texts[0][:40]!r}"
        with foreign(f"the tokenizer cannot encode {first}", "look at the patterns of its tokenizer.json"):
            ids: list[list[int]] = self._tokenizer(texts, verbose=False, **options)["input_ids"]
        if (largest := max((max(row) for row in ids if row), default=0)) > _LARGEST_ID:
            raise InvalidInput(f"the tokenizer gives {first} the token {largest}, which no vocabulary has")
        return ids

    @cached_property
    def _cuts(self) -> TokenBoundaries | None:
        return TokenBoundaries.of(self._tokenizer)


def _with_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase, known_ids: int | None) -> list[int]:
    bos = known(tokenizer.bos_token_id, known_ids)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _rows(tokens: EvalTokens) -> Iterator[bytes]:
    """A digest of what is measured of each document."""
    for row, length in zip(tokens.ids.numpy(), tokens.lengths.tolist(), strict=True):
        yield hashlib.sha256(row[:length].tobytes()).digest()


def _tensor(values: array[int]) -> Tensor:
    """[n] int32, the array's own memory."""
    return torch.from_numpy(np.frombuffer(values, dtype=np.int32))


def _notes(notes: tuple[str, ...]) -> dict[str, Json]:
    """Left out where there are none: artifacts are older than notes."""
    return {"notes": list(notes)} if notes else {}
