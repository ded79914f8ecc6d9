"""The cell's SAE where it reads, and how long a hidden state may be there: what interventions on latents are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import UNLIMITED, NormLimit, lengths
from latentbench.activations.vocabulary import last_position, padding_of
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.interventions.generation import left_padded, prompt_ids
from latentbench.interventions.latents import PlacedSae
from latentbench.steering.build import neutral_texts
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Content, StageContext

_ROWS = 8


def norm_limit(method: SteeringMethod, context: StageContext) -> Content:
    """The longest ordinary hidden state where the cell's SAE reads, and the key that stands for the SAE.

    Raises InvalidInput where there is not one SAE, or no text to tell massive tokens by.
    """
    _ = context.sae  # raises where there is not one
    (site,) = context.saes()
    return Content({}, {"limit": longest_ordinary(context, site).plain(), "sae": context.key})


def placed_sae(content: Content, context: StageContext) -> PlacedSae:
    """The cell's SAE, from what `norm_limit` made."""
    (site,) = context.saes()
    return PlacedSae(context.sae, site, NormLimit.from_plain(content.meta["limit"]), content.meta["sae"])


@torch.no_grad()
def longest_ordinary(context: StageContext, site: Site) -> NormLimit:
    """The token rule's multiple of the median length at a site, over tokens of the first evaluation texts that are not special.

    Raises InvalidInput without such texts.
    """
    multiple = context.experiment.token_rule.multiple
    if multiple is None:
        return UNLIMITED
    texts = [text for text in neutral_texts(context) if text.strip()]
    if not texts:
        raise InvalidInput("which tokens are massive is told by evaluation texts; the spec has no `dataset.eval`")
    lm, found = context.model(), list[Tensor]()
    special = torch.tensor(sorted(set(lm.tokenizer.all_special_ids)), device=lm.device)
    for first in range(0, len(texts), _ROWS):
        rows = [row[: last_position(lm.model)] for row in prompt_ids(lm, texts[first : first + _ROWS])]
        ids, mask = left_padded(rows, padding_of(lm), lm.device)
        ordinary = mask.bool() & ~torch.isin(ids, special)
        found.append(lengths(hidden_states(lm.model, [site], ids, mask)[site][ordinary]).cpu())
    return NormLimit.of(torch.cat(found), multiple)
