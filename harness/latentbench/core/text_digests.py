"""Digests of documents: which of them are letter for letter the same, or the same apart from white space."""

from __future__ import annotations

import hashlib
import re

from latentbench.core.errors import InvalidInput

_PIECE = 1 << 20
_LINE = re.compile(r"\S++(?: \S++)*+")
"""Words with single spaces between them."""


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


def folded_digest_of(text: str, digest: int | None = None) -> int:
    """`digest_of` the text with every run of white space as one space and none at its ends; `digest` is the text's own.

    In pieces as well: a document that is one line already, as most are, is not read twice.
    """
    line = _LINE.match(text)
    if line and line.end() == len(text):
        return digest_of(text) if digest is None else digest
    sha, space = hashlib.sha256(), b""
    for line in _LINE.finditer(text):
        sha.update(space + line[0].encode())
        space = b" "
    return int.from_bytes(sha.digest()[:8], "big")
