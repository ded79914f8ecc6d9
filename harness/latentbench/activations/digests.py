"""Digests of documents, which say that two of them are letter for letter the same."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from latentbench.errors import InvalidInput

_PIECE = 1 << 20
_LINE = re.compile(r"\S++(?: \S++)*+")
"""Words with single spaces between them."""


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

    def among(self, others: Digests) -> int:
        """How many of these documents are among the others."""
        return int(np.isin(self._words, others._words).sum())

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


def digest_of(text: str) -> int:
    """The first 64 bits of the sha256 of a document's UTF-8. Raises InvalidInput where it cannot be written as that.

    Encoded piece by piece, so that a long document is not held twice.
    """
    sha = hashlib.sha256()
    try:
        for start in range(0, len(text), _PIECE):
            sha.update(text[start : start + _PIECE].encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a document is not valid Unicode ({error.reason}): {text[:40]!r}…") from error
    return int.from_bytes(sha.digest()[:8], "big")


def folded_digest_of(text: str, digest: int) -> int:
    """`digest_of` the text with every run of white space as one space and none at its ends; `digest` is the text's own.

    In pieces as well: a document that is one line already, as most are, is not read twice.
    """
    line = _LINE.match(text)
    if line and line.end() == len(text):
        return digest
    sha, space = hashlib.sha256(), b""
    for line in _LINE.finditer(text):
        sha.update(space + line[0].encode())
        space = b" "
    return int.from_bytes(sha.digest()[:8], "big")


def collected(words: array[int]) -> Digests:
    """What `digest_of` gave, one after the other, in an array of type Q."""
    return Digests(np.frombuffer(words, dtype=np.uint64))
