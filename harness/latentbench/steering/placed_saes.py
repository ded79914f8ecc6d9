"""The cell's SAE where it reads, and how long a hidden state may be there: what interventions on latents are made of."""

from __future__ import annotations

from latentbench.activations.massive import UNLIMITED, NormLimit
from latentbench.interventions.latents import PlacedSae
from latentbench.steering.method import SteeringMethod
from latentbench.steering.ordinary import ordinary_lengths
from latentbench.study.context import Content, StageContext


def norm_limit(method: SteeringMethod, context: StageContext) -> Content:
    """The longest ordinary hidden state where the cell's SAE reads, and the key that stands for the SAE.

    Raises InvalidInput where there is not one SAE, or no text to tell massive tokens by.
    """
    _ = context.sae  # raises where there is not one
    (site,) = context.saes()
    ruled = context.experiment.token_rule.multiple is not None
    limit = ordinary_lengths(context, (site,))[site].limit if ruled else UNLIMITED
    return Content({}, {"limit": limit.plain(), "sae": context.key})


def placed_sae(content: Content, context: StageContext) -> PlacedSae:
    """The cell's SAE, from what `norm_limit` made."""
    (site,) = context.saes()
    return PlacedSae(context.sae, site, NormLimit.from_plain(content.meta["limit"]), content.meta["sae"])
