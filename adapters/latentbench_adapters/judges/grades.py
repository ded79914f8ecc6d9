"""How sure a chat model was of the labels it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_LABELS = ("0", "1")


def ones_of(steps: Iterable[tuple[str, Mapping[str, float]]]) -> dict[int, float]:
    """Offset of every token that is 0 or 1 alone, to the probability of 1 against 0 there.

    `steps` are the written tokens in order, each with the probabilities of tokens that could have stood there (the
    written one among them, or certain). Spaces around a digit do not count.
    """
    found, offset = {}, 0
    for token, others in steps:
        if token.strip() in _LABELS:
            zero, one = (sum(p for other, p in others.items() if other.strip() == label) for label in _LABELS)
            written = float(token.strip())
            found[offset + len(token) - len(token.lstrip())] = one / (zero + one) if zero + one > 0 else written
        offset += len(token)
    return found
