"""Massive activations: how long a hidden state may be to count as ordinary at a place, and which tokens are named.

The limit of a place is a multiple of the median length of its hidden states (`latentbench.core.token_rule` says why). The
median is taken over tokens that are neither special nor named, of the first block of a training or of the first documents of
a domain, and stored with what was made under it: SAEs that are measured together are measured on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.core.token_rule import TokenRule, share_left_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NormLimit:
    """How long a hidden state may be at one place."""

    median: float
    """Median Euclidean length of the hidden states that it was taken from; NaN where there were none."""
    length: float
    """The longest that is ordinary; infinite where none is massive."""

    @staticmethod
    def of(lengths: Tensor, multiple: float | None) -> NormLimit:
        """From the lengths [n] of hidden states, in any order; those that are infinite or NaN are not counted.

        The lower of the two middle lengths is the median of an even number, so that it is one that occurs. Where it is 0, as
        for the output of a block that does nothing, no length is massive.
        """
        finite = lengths[lengths.isfinite()]
        median = float(finite.median()) if len(finite) else math.nan
        return NormLimit(median, multiple * median if multiple is not None and median > 0 else math.inf)

    def plain(self) -> Json:
        """JSON data; what is not finite is null."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @staticmethod
    def from_plain(plain: Mapping[str, Json]) -> NormLimit:
        """The inverse of `plain`."""
        median, length = plain["median"], plain["length"]
        return NormLimit(math.nan if median is None else median, math.inf if length is None else length)


UNLIMITED = NormLimit(math.nan, math.inf)
"""No length is massive."""


@dataclass(frozen=True)
class LeftOut:
    """How many tokens a rule left out at one place."""

    limit: NormLimit
    tokens: int
    """Those that count."""
    massive: int
    named: int

    @property
    def counts(self) -> dict[str, int]:
        """The three by name."""
        return {"tokens": self.tokens, "massive": self.massive, "named": self.named}

    @property
    def share(self) -> float:
        """Of all tokens that are not special, those left out."""
        return share_left_out(self.counts)

    def plain(self) -> Json:
        """As training records have it; an infinite limit is null."""
        return {"median": self.limit.plain()["median"], "limit": self.limit.plain()["length"], **self.counts}


@dataclass(frozen=True)
class OrdinaryTokens:
    """Which tokens count: not named, and at each place not massive. Special tokens are left out before."""

    named: frozenset[int] = frozenset()
    """Token ids."""
    limits: Mapping[Site, NormLimit] = field(default_factory=dict)
    """By place; none is massive at a place that is not among them."""

    def short(self, site: Site, states: Tensor) -> Tensor:
        """Bool [...]: which of the hidden states [..., d] at `site` are not massive.

        A state with NaN or infinity is not: it is a fault of the model, which whoever reads it reports.
        """
        length = self.limits.get(site, UNLIMITED).length
        if math.isinf(length):
            return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)
        found = lengths(states)
        return (found <= length) | ~found.isfinite()


EVERY_LENGTH = OrdinaryTokens()
"""No token is named, and none is massive anywhere."""


def lengths(states: Tensor) -> Tensor:
    """Euclidean lengths [...] float32 of hidden states [..., d] of any type."""
    found: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return found


def named_mask(ids: Tensor, named: Collection[int]) -> Tensor:
    """Bool, shaped like `ids`: where a token is one of those named."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for token in sorted(named):
        mask |= ids == token
    return mask


def named_ids(rule: TokenRule, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokens that a rule names. Raises InvalidInput for a text that is not one token."""
    return frozenset(_id_of(text, tokenizer) for text in rule.named)


def _id_of(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    # As the vocabulary spells it first: `<|im_start|>` and `<0x0A>` are tokens, whatever a text with these letters becomes.
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return int(vocabulary[text])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
    raise InvalidInput(
        f"leave_out: {text!r} is not one token of this model but {len(ids)} ({pieces or 'none'}); name tokens one by one, as the "
        "vocabulary spells them or as the text that becomes one"
    )
