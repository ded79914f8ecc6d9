"""Attention of rows over their prompts, which are kept once for all samples of each, and over what they have written.

Both parts are done for themselves and put together by their normalisers: with a and b the attention over the two parts and
s, t the logarithms of their sums of exponentials, the whole is (eˢ a + eᵗ b) / (eˢ + eᵗ). The samples of a prompt are
queries of one attention over it, so its keys and values are read once per step.

torch's fused attention gives the normaliser on CPUs only as an operator without a documented interface. Whether it and
the model's attention allow this is measured as all ways of writing are (`latentbench.interventions.writing_ways`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.row_cache import Columns, RowCache

_NAME = "latentbench_shared_prompts"
_UNKNOWN = ("softcap", "position_bias", "s_aux", "sliding_window")
"""What some models tell their attention besides."""


def check_shareable(lm: LanguageModel) -> None:
    """Raises InvalidInput for a model whose samples cannot share their prompt, as far as its configuration says so."""
    config: Any = lm.model.config
    text: Any = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    windowed = getattr(text, "layer_types", None) is None and getattr(text, "sliding_window", None) is not None
    if lm.device.type != "cpu" or config._attn_implementation != "sdpa" or kinds != {"full_attention"} or windowed:
        raise InvalidInput("only full attention by torch's own function on a CPU can share prompts")


class SharedAttention:
    """The attention of all layers in the passes over a cache whose prompts are shared."""

    def __init__(self, cache: RowCache, prompts: Columns) -> None:
        self._cache, self._prompts, self._version = cache, prompts, -1
        self._queries = self._places = self._prompt_bias = self._own_bias = torch.empty(0)

    @contextmanager
    def during(self, model: Any) -> Iterator[None]:
        """While open, one pass of a model does its attention here."""
        if self._version != self._cache.version:
            self._arrange()
        dtype = self._prompts.part(0).dtype
        self._own_bias = _bias(self._cache.own.mask(1), dtype)
        token, before = _RUNNING.set(self), model.config._attn_implementation
        model.config._attn_implementation = _NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before
            _RUNNING.reset(token)

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """[rows, 1, heads, d] of queries [rows, heads, 1, d] and the keys and values of what the rows have written."""
        rows, heads, _, width = query.shape
        prompts, samples, kept = self._prompts.rows, self._cache.samples, key.shape[1]
        # Heads that share keys are queries of one attention as well.
        query = query.reshape(rows, kept, heads // kept, width)
        own, own_size = _fused(query, key, value, self._own_bias, scale)
        asked = (
            query[self._queries]
            .view(prompts, samples, kept, -1, width)
            .transpose(1, 2)
            .reshape(prompts, kept, -1, width)
        )
        keys, values = self._prompts.part(2 * layer), self._prompts.part(2 * layer + 1)
        found, size = _fused(asked, keys, values, self._prompt_bias, scale)
        found, size = (self._by_row(part, samples) for part in (found, size[..., None]))
        share = torch.sigmoid(own_size[..., None] - size)
        whole = torch.lerp(found.to(share.dtype), own.to(share.dtype), share)
        return whole.to(query.dtype).reshape(rows, 1, heads, -1)

    def _by_row(self, found: Tensor, samples: int) -> Tensor:
        """[rows, heads, group, d] of [prompts, heads, samples · group, d]."""
        prompts, kept, _, width = found.shape
        return (
            found.view(prompts, kept, samples, -1, width)
            .transpose(1, 2)
            .reshape(prompts * samples, kept, -1, width)[self._places]
        )

    def _arrange(self) -> None:
        """Which row asks each prompt for each sample, and where each row finds its answer."""
        cache, device = self._cache, self._prompts.part(0).device
        places = [place * cache.samples + sample for place, sample in cache.members]
        asks = [0] * (self._prompts.rows * cache.samples)  # for samples that are over anyone may ask
        for row, place in enumerate(places):
            asks[place] = row
        self._queries, self._places = (torch.tensor(numbers, device=device) for numbers in (asks, places))
        self._prompt_bias = _bias(self._prompts.mask(), self._prompts.part(0).dtype)
        self._version = cache.version


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, T] what is added to scores: 0, or −∞ outside of the mask [B, T]."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)[:, None, None]


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, n, d] and the logarithm of its normaliser [B, heads, n]."""
    bias = bias.expand(-1, 1, query.shape[2], -1)
    attend: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: tuple[Tensor, Tensor] = attend(query, key, value, attn_mask=bias, scale=scale)
    return found


_RUNNING: ContextVar[SharedAttention] = ContextVar("latentbench_shared_attention")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer."""
    if any(more.get(name) is not None for name in _UNKNOWN):
        raise InvalidInput("its attention is told more than keys and values")
    return _RUNNING.get().attention(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attend)
