"""Writing step by step with a cache of keys and values: every prompt is read once for all its samples, and dead rows are dropped.

In a batch of answers of very different length most of the work of a plain batched `generate()` is for rows that are over.
It needs a cache that can be repeated and thinned out row by row, which attention-only decoders have and most others do not:
`latentbench.interventions.writing_ways` finds out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from latentbench.activations.vocabulary import padding_of, positions, positions_in, takes_positions
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.generation import left_padded
from latentbench.interventions.intervention import Layout

Draw = Callable[[Tensor, Sequence[int]], Tensor]
"""Next tokens [B, 1] from logits [B, vocabulary] and the numbers of their rows."""

_KEEP = 0.8
"""Rows are dropped once no more than this share of them is still being written: dropping copies the whole cache, so it
must save more steps of dead rows than it costs."""


def cached_steps(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    over: list[bool],
    *,
    most: int,
    samples: int,
    layout: Layout,
) -> Iterator[tuple[list[int], list[int]]]:
    """Row numbers and their next tokens, for at most `most` steps; the caller marks rows that are `over`.

    The rows of a prompt's `samples` stand together. `layout` is told where the prompts end. Raises InvalidInput for a model
    that keeps another cache.
    """
    ids, mask = left_padded(prompts, padding_of(lm), lm.device)
    position = mask.sum(1)  # of the next token: as many real tokens stand before it
    layout.prompt_lengths = position
    run = _CachedForward(lm.model)
    output = run(ids, mask, positions_in(mask), None)
    # The prompt is read once; its keys, values and logits are then repeated for every sample of it, as if each had read it.
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    mask, position = mask.repeat_interleave(samples, 0), position.repeat_interleave(samples, 0)
    layout.prompt_lengths, layout.earlier = position, ids.repeat_interleave(samples, 0)
    rows, last = list(range(len(over))), (positions(lm.model) or sys.maxsize) - 1
    for step in range(most):
        tokens = draw(logits, rows)
        yield rows, tokens[:, 0].tolist()
        alive = [number for number, row in enumerate(rows) if not over[row]]
        if not alive or step + 1 == most:
            break  # before the pass whose logits nobody would draw from
        if len(alive) < _KEEP * len(rows):
            kept = torch.tensor(alive, device=mask.device)
            cache.batch_select_indices(kept)
            mask, position, tokens = mask[kept], position[kept], tokens[kept]
            # Hooks of an intervention tell prompt from answer row by row, so they must lose the same rows.
            layout.prompt_lengths, layout.earlier = layout.prompt_lengths[kept], layout.earlier[kept]
            rows = [rows[number] for number in alive]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        output = run(tokens, mask, position[:, None], cache)
        layout.earlier = torch.cat([layout.earlier, tokens], 1)
        # Rows that are over and not dropped yet stay within the context; nobody reads what they write.
        position, logits = (position + 1).clamp_max(last), output.logits[:, -1]


class _CachedForward:
    """Forward passes with a cache, for models with and without `position_ids`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._takes_positions = takes_positions(model)

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        # Prompts are padded on the left: a model that counts columns would give the same text other positions in each batch.
        more = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        if not hasattr(output.past_key_values, "batch_select_indices"):
            raise InvalidInput(f"{type(self._model).__name__} keeps another cache than transformers' default one")
        return output
