"""What methods share when they make their content: layers, hidden states of texts, and the way to and from `Content`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.capture import hidden_states
from latentbench.activations.vocabulary import last_position, padding_of
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import OUTPUT, Place, Site
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import left_padded, prompt_ids
from latentbench.interventions.vectors import SteeringVectors, model_tag, residual_width
from latentbench.study.context import Content, StageContext

INVERSE_LENGTHS = "inverse_lengths"
"""Name of the means of 1/‖h‖ by layer in the `meta` of content, which doses are told by."""
_ROWS = 32
_LAYER = "layer."
"""Begins the name of a vector among the tensors of a `Content`; the number of its block follows."""
_NORM_TEXTS, _NORM_CHARACTERS = 64, 2000
"""How much text the residual stream's mean norm is taken over; a mean over thousands of tokens does not need more."""


def content_of(
    vectors: Mapping[int, Tensor], norms: Mapping[int, float] | None = None, *, place: Place = OUTPUT, **meta: Json
) -> Content:
    """Vectors [d_model] by layer and what is to be remembered of their making.

    `norms` are the mean norms of the hidden states at `place` by layer, which relative scales are fractions of; without them
    such scales are refused.
    """
    tensors = {f"{_LAYER}{layer}": vector.detach().float().cpu().contiguous() for layer, vector in vectors.items()}
    known = {str(layer): norm for layer, norm in (norms or {}).items()}
    elsewhere: dict[str, Json] = {} if place == OUTPUT else {"place": place}
    return Content(tensors, {"residual_norms": known, **elsewhere, **meta})


def vectors_of(content: Content, context: StageContext) -> SteeringVectors:
    """The vectors in what `content_of` made, for the cell's model."""
    return vectors_in(content, model_tag(context.experiment.model.identity(context.roots)))


def vectors_in(content: Content, tag: Json) -> SteeringVectors:
    """The vectors in what `content_of` made, for the model that `tag` stands for (`model_tag`).

    Those that came from a file keep the model that the file was written for: its `made_for` is in the content.
    Raises CellFailed for content that `content_of` did not make.
    """
    vectors = by_layer(content)
    norms = {int(layer): float(norm) for layer, norm in content.meta.get("residual_norms", {}).items()}
    return SteeringVectors(vectors, content.meta.get("made_for", tag), norms, place_of(content))


def joined(parts: Sequence[Content]) -> Content:
    """The contents of several methods side by side."""
    tensors = {f"{number}/{name}": t for number, part in enumerate(parts) for name, t in part.tensors.items()}
    return Content(tensors, {"parts": [dict(part.meta) for part in parts]})


def parted(content: Content) -> list[Content]:
    """The inverse of `joined`."""
    found = []
    for number, meta in enumerate(content.meta["parts"]):
        start = f"{number}/"
        tensors = {n.removeprefix(start): t for n, t in content.tensors.items() if n.startswith(start)}
        found.append(Content(tensors, meta))
    return found


def by_layer(content: Content) -> dict[int, Tensor]:
    """The tensors of what `content_of` made, by layer. Raises CellFailed for content that it did not make."""
    if strange := [name for name in content.tensors if not name.removeprefix(_LAYER).isdecimal()]:
        raise CellFailed(
            f"a steering method left a tensor {strange[0]!r}; what `content_of(vectors)` makes is expected"
        )
    return {int(name.removeprefix(_LAYER)): tensor for name, tensor in content.tensors.items()}


def place_of(content: Content) -> Place:
    """Which hidden state of their blocks the vectors of what `content_of` made are for."""
    place: Place = content.meta.get("place", OUTPUT)
    return place


def at_layer(content: Content, layer: int) -> Content:
    """The part of what `content_of` made that is one layer's. Raises CellFailed for content without such a part."""
    if (name := f"{_LAYER}{layer}") not in content.tensors:
        raise CellFailed(f"a steering method made nothing for layer {layer}, which was to be used alone")
    return Content({name: content.tensors[name]}, content.meta)


def at_dose(vectors: SteeringVectors, dose: float, content: Content) -> SteeringVectors:
    """The same directions, as long as makes the mean of ‖Δ‖/‖h‖ over ordinary tokens `dose`; see `with_inverse_lengths`.

    Raises InvalidInput for content that was made without what tells that.
    """
    inverse = {int(layer): float(mean) for layer, mean in content.meta.get(INVERSE_LENGTHS, {}).items()}
    if missing := [layer for layer in vectors.layers if layer not in inverse]:
        raise InvalidInput(f"a dose needs the lengths of hidden states, which are not known for layers {missing}")
    lengths = {layer: dose / inverse[layer] for layer in vectors.layers}
    return replace(vectors, vectors={layer: lengths[layer] * unit(v) for layer, v in vectors.vectors.items()})


class ChoosesLayers(Protocol):
    """What `layers_of` needs of a steering method."""

    def chosen(self, blocks: int) -> tuple[int, ...]:
        """Block numbers in a model of that many blocks."""


def layers_of(method: ChoosesLayers, lm: LanguageModel) -> tuple[int, ...]:
    """Block numbers that the `layers` of a method mean in this model. Raises InvalidInput for one it does not have."""
    return method.chosen(len(decoder_blocks(lm.model)))


def neutral_texts(context: StageContext) -> list[str]:
    """The first texts of the cell's first evaluation domain, none without one."""
    dataset = next(iter(context.experiment.dataset.eval.values()), None)
    if dataset is None:
        return []
    count = min(dataset.documents or _NORM_TEXTS, _NORM_TEXTS)
    return [text[:_NORM_CHARACTERS] for text in islice(dataset.read(context.roots), count)]


@dataclass(frozen=True)
class Residuals:
    """One hidden state of some blocks, of a batch of texts."""

    states: Mapping[int, Tensor]
    """Layer to [B, T, d_model]."""
    real: Tensor
    """[B, T] bool: not padding, and not the first of several tokens, whose state is unlike all others."""


def residuals(
    lm: LanguageModel, layers: Sequence[int], texts: Sequence[str], whole: bool = True, place: Place = OUTPUT
) -> Iterator[Residuals]:
    """Hidden states at `place` of the blocks `layers`, of texts padded on the left, batch by batch, in order.

    Raises InvalidInput for a text without tokens, or with more than the model has positions for; the latter are cut there
    unless they must be read `whole`.
    """
    room = last_position(lm.model)
    sites = {layer: Site(index=layer, point=place) for layer in layers}
    for first in range(0, len(texts), _ROWS):
        rows = prompt_ids(lm, texts[first : first + _ROWS])
        if whole and room is not None and (longest := max(map(len, rows))) > room:
            raise InvalidInput(f"a text of {longest} tokens is longer than the model's {room} positions; shorten it")
        rows = [row[:room] for row in rows]
        ids, mask = left_padded(rows, padding_of(lm), lm.device)
        with torch.no_grad():
            states = hidden_states(lm.model, list(sites.values()), ids, mask)
        # Without the first real token, on which attention rests that has nowhere to go: its norm can be a hundred times the
        # others' and would be most of any mean (Massive Activations, arXiv 2402.17762). Alone it is all there is.
        real = mask.bool() & ~((mask.cumsum(1) == 1) & (mask.sum(1, keepdim=True) > 1))
        yield Residuals({layer: states[site] for layer, site in sites.items()}, real)


def residual_norms(
    lm: LanguageModel, layers: Sequence[int], texts: Sequence[str], place: Place = OUTPUT
) -> dict[int, float]:
    """Mean norm of the hidden state at `place` of each of `layers`, over the tokens of the first 64 texts but their first.

    Empty without texts.
    """
    readable = [text for text in texts[:_NORM_TEXTS] if text.strip()]
    if not readable:
        return {}
    sums, tokens = dict.fromkeys(layers, 0.0), 0
    for batch in residuals(lm, layers, readable, whole=False, place=place):
        tokens += int(batch.real.sum())
        for layer, states in batch.states.items():
            sums[layer] += float(states.double().norm(dim=-1)[batch.real].sum())
    return {layer: total / max(1, tokens) for layer, total in sums.items()}


def width_of(model: Any) -> int:
    """Width of the residual stream. Raises InvalidInput where the model's configuration does not say it."""
    if (width := residual_width(model)) is None:
        raise InvalidInput(f"the configuration of {type(model).__name__} has no hidden_size, the width of a vector")
    return width


def unit(vector: Tensor) -> Tensor:
    """`vector` with norm one (a zero vector stays)."""
    norm: Tensor = torch.linalg.vector_norm(vector)
    return vector / norm.clamp_min(1e-30)
