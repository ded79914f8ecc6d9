"""Which tokens a spec takes as ordinary ones at the places where its SAEs read, apart from those that a tokenizer marks.

In every model whose hidden states were looked at, a few tokens (the first of a row, line breaks, in later layers any token
without meaning) hold states ten to hundreds of times as long as all others: massive activations (arXiv 2402.17762). They are
under one percent of the tokens and nearly all of the variance, so that an SAE trained on them learns little else, and a
number over them says little else. The rule is by length and not by position, because they stand anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentbench.core.spec_model import Json

DEFAULT_MULTIPLE = 10.0
"""Of the median length; the multiple that dictionary_learning uses."""
MUCH = 0.02
"""The share of tokens left out above which a row says so."""


def share_left_out(counts: Mapping[str, float]) -> float:
    """Of all tokens that are not special the massive and the named ones; `counts` says how many those are, and the `tokens` left."""
    left_out = counts["massive"] + counts["named"]
    return left_out / max(1.0, left_out + counts["tokens"])


@dataclass(frozen=True)
class TokenRule:
    """Tokens left out of training, input scaling, decoder initialisation and every number of reconstruction."""

    multiple: float | None = DEFAULT_MULTIPLE
    """A token is massive at a place where its hidden state is longer than so many times the median there; None: none is."""
    named: tuple[str, ...] = ()
    """Texts of tokens that are left out at every place, such as `<|im_start|>` or a line break."""

    def plain(self) -> Json:
        """What keys and rows hold of it."""
        return {"massive": "keep" if self.multiple is None else self.multiple, "leave_out": list(self.named)}


EVERY_TOKEN = TokenRule(multiple=None)
"""Nothing but the tokenizer's special tokens is left out."""
