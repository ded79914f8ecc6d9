"""Vectors made elsewhere, at the blocks and in the length that they have here: the implementation of `method: transfer`."""

from __future__ import annotations

from collections.abc import Sequence

from latentbench.core.errors import InvalidInput
from latentbench.interventions.vectors import SteeringVectors
from latentbench.steering.build import by_layer, content_of, layers_of, neutral_texts, place_of, residual_norms
from latentbench.steering.transfer import TransferMethod
from latentbench.study.context import Content, StageContext


def transferred_vectors(method: TransferMethod, context: StageContext) -> Content:
    """The vectors of the cell that they come from, by the blocks that they are added to here.

    Raises InvalidInput where there is not one block for each, or where they are not as wide as this model's hidden states.
    """
    lm, home = context.model(), context.home()
    made, place = by_layer(home.content), place_of(home.content)
    pairs = _pairs(method, sorted(made), context)
    vectors = {here: made[there] for there, here in pairs}
    SteeringVectors(vectors).check(lm.model)
    norms = residual_norms(lm, tuple(vectors), neutral_texts(context), place)
    if method.rescale == "norms":
        before = residual_norms(home.model(), tuple(made), neutral_texts(context), place)
        if not norms:
            raise InvalidInput("transfer: norms are measured on evaluation texts, and there are none")
        vectors = {here: norms[here] / before[there] * made[there] for there, here in pairs}
    return content_of(vectors, norms, place=place, moved={str(here): there for there, here in pairs})


def _pairs(method: TransferMethod, made: Sequence[int], context: StageContext) -> list[tuple[int, int]]:
    """(block where a vector was made, block where it is added), by the latter."""
    if method.layers == "all":
        return [(layer, layer) for layer in made]
    here = layers_of(method, context.model())
    if len(made) not in (1, len(here)):
        raise InvalidInput(
            f"transfer: {len(made)} vectors cannot be added to {len(here)} blocks; name as many as there are"
        )
    return list(zip(made if len(made) > 1 else list(made) * len(here), here, strict=True))
