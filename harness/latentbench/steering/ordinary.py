"""How long hidden states of ordinary tokens are at some places, on the cell's first evaluation texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import NormLimit, lengths, named_ids, named_mask
from latentbench.activations.vocabulary import last_position, padding_of
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.interventions.generation import left_padded, prompt_ids
from latentbench.steering.build import INVERSE_LENGTHS, by_layer, neutral_texts, place_of
from latentbench.study.context import Content, StageContext

_ROWS = 8


@dataclass(frozen=True)
class OrdinaryLengths:
    """Euclidean lengths at one place."""

    limit: NormLimit
    """Longer hidden states are massive."""
    found: Tensor
    """[tokens] float32 of tokens that are neither special nor named nor massive."""

    @property
    def mean_inverse(self) -> float:
        """Mean of 1/‖h‖. Raises InvalidInput where no token is ordinary, or one has length 0."""
        if not len(self.found) or not bool((self.found > 0).all()):
            raise InvalidInput(
                "no dose can be told: the first evaluation texts hold no ordinary token of length above 0"
            )
        return float((1 / self.found.double()).mean())


@torch.no_grad()
def ordinary_lengths(context: StageContext, sites: Sequence[Site]) -> Mapping[Site, OrdinaryLengths]:
    """Of each site, by the experiment's token rule. Raises InvalidInput without evaluation texts."""
    texts = [text for text in neutral_texts(context) if text.strip()]
    if not texts:
        raise InvalidInput("which tokens are massive is told by evaluation texts; the spec has no `dataset.eval`")
    lm, rule = context.model(), context.experiment.token_rule
    named = named_ids(rule, lm.tokenizer) | frozenset(lm.tokenizer.all_special_ids)
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for first in range(0, len(texts), _ROWS):
        rows = [row[: last_position(lm.model)] for row in prompt_ids(lm, texts[first : first + _ROWS])]
        ids, mask = left_padded(rows, padding_of(lm), lm.device)
        counted = mask.bool() & ~named_mask(ids, named)
        states = hidden_states(lm.model, list(found), ids, mask)
        for site, parts in found.items():
            parts.append(lengths(states[site][counted]).cpu())
    return {site: _ordinary(torch.cat(parts), rule.multiple) for site, parts in found.items()}


def with_inverse_lengths(made: Content, context: StageContext) -> Content:
    """Vectors with the mean of 1/‖h‖ over ordinary tokens where each of them is added.

    A vector of length λ has there the mean ‖Δ‖/‖h‖ of λ times that, to the rounding of the model's data type.
    """
    sites = {layer: Site(index=layer, point=place_of(made)) for layer in by_layer(made)}
    found = ordinary_lengths(context, list(sites.values()))
    means = {str(layer): found[site].mean_inverse for layer, site in sites.items()}
    return Content(made.tensors, {**made.meta, INVERSE_LENGTHS: means})


def _ordinary(found: Tensor, multiple: float | None) -> OrdinaryLengths:
    limit = NormLimit.of(found, multiple)
    return OrdinaryLengths(limit, found[found <= limit.length])
