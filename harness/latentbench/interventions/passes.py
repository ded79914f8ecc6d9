"""Following a model's forward passes: which tokens each is over, where the prompts end, and what is padding.

A scope such as `generated` is about positions in a text, but a hook sees a tensor: a whole batch of texts, or with a KV cache
only the newest token of each. What is missing is taken from the call's attention mask, which covers cached tokens too, and
from where `generate()` was told that the prompts end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.core.errors import InvalidInput
from latentbench.interventions.intervention import Layout, Scope


@dataclass(frozen=True)
class PassTokens:
    """The tokens of one forward pass."""

    order: Tensor
    """[B, T] int: positions, padding not counted."""
    real: Tensor
    """[B, T] bool: not padding."""
    prompt_lengths: Tensor | None
    """[B] int: tokens of the prompts, where they are known."""
    ids: Tensor | None = None
    """[B, cached + T] int: what is read and what was read before, padding included, where it is known."""
    mask: Tensor | None = None
    """[B, cached + T] bool: which of `ids` are no padding."""

    def texts(self) -> list[list[int]]:
        """The ids of every row without padding, what is cached first. Raises InvalidInput where they are not known."""
        if self.ids is None or self.mask is None:
            raise InvalidInput(
                "steering after a text needs to know all token ids: use generate(), or set `Layout.earlier` beside a cache"
            )
        return [row[real].tolist() for row, real in zip(self.ids, self.mask, strict=True)]

    def in_scope(self, scope: Scope) -> Tensor:
        """[B, T] bool. Raises InvalidInput where the scope needs prompt lengths that are not known."""
        if scope == "all":
            return self.real
        if self.prompt_lengths is None:
            raise InvalidInput(
                f"scope {scope!r} needs to know where the prompts end: use generate(), or set `Layout.prompt_lengths`"
            )
        # Position t is changed for what it predicts, token t + 1: the last token of the prompt writes the first generated.
        last = self.prompt_lengths.to(self.order.device)[:, None] - 1
        order = self.order
        return {"generated": order >= last, "first": order == last, "prompt": order < last}[scope] & self.real


Enter = Callable[[PassTokens], None]
Leave = Callable[[], None]


@contextmanager
def watching_passes(model: nn.Module, layout: Layout, enter: Enter, leave: Leave) -> Iterator[None]:
    """While open, `enter` is called before every forward pass of `model` and `leave` after every one that is complete.

    Prompts are those of `layout` or, while `generate()` runs, of its input, with or without a cache. `leave` is not called
    for a pass that raised, nor for one that a hook stopped on purpose (`latentbench.activations.capture`).
    """
    written: list[_Written] = []
    """Empty outside of `generate()`; a list, because the wrapper of `generate` sets what hooks read."""

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(_tokens(args, kwargs, layout, written[-1] if written else None))

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        leave()

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(entering, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(leaving).remove)
        stack.enter_context(_watched_generate(model, written))
        yield


@dataclass
class _Written:
    """A text that `generate()` is writing."""

    columns: int
    """Columns of the prompt, padding included."""
    mask: Tensor | None = None
    """[B, columns so far] bool, as of the latest pass: which of all tokens are real."""
    ids: Tensor | None = None
    """[B, columns so far] int, as of the latest pass."""


def _tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any], layout: Layout, written: _Written | None) -> PassTokens:
    given = _given(args, kwargs)
    mask = _mask(given, kwargs, layout, written)
    if written is not None:
        written.mask = mask
    length = given.shape[1]
    # Counted over cached and new tokens alike, so that a token keeps its position whether it is read with its text or alone.
    # Padding gets the position of the token before it, −1 in front of all; it is masked wherever that matters.
    order = mask.cumsum(1) - 1
    # The mask that `generate()` hands on grows at the end, so its first columns stay those of the prompt. Its rows are also
    # those of the pass (several sequences per prompt, beams), which `layout` could not know.
    lengths = layout.prompt_lengths if written is None else mask[:, : written.columns].sum(1)
    ids = _ids(given, mask.shape[1] - length, layout.earlier if written is None else written.ids)
    if written is not None:
        written.ids = ids
    return PassTokens(order[:, -length:], mask[:, -length:], lengths, ids, mask)


def _ids(given: Tensor, cached: int, earlier: Tensor | None) -> Tensor | None:
    """[B, cached + T] ids of a pass over ids `given`, behind the `earlier` ones; None where some are not known."""
    if given.ndim != 2 or given.is_floating_point():
        return None  # embeddings
    if not cached:
        return given
    fits = earlier is not None and earlier.shape == (len(given), cached)
    return torch.cat([earlier.to(given.device), given], 1) if earlier is not None and fits else None


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a pass is over: ids [B, T] or embeddings [B, T, d]."""
    places = (args[0] if args else None, kwargs.get("input_ids"), kwargs.get("inputs"), kwargs.get("inputs_embeds"))
    return next(tensor for tensor in places if isinstance(tensor, Tensor))


def _mask(given: Tensor, kwargs: Mapping[str, Any], layout: Layout, written: _Written | None) -> Tensor:
    """[B, cached + T] bool: which tokens are real, those in the cache first."""
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool()
    if mask is not None:
        raise InvalidInput(
            "steering tells tokens from padding by an attention mask [batch, tokens]; this call has one of another "
            "form (a static cache does that: generate with the default cache)"
        )
    batch, length = given.shape[:2]
    if written is not None and written.mask is not None and written.mask.shape[0] == batch and length == 1:
        # State-space models keep the prompt's padding in their state: `generate()` tells them of it once.
        return torch.cat([written.mask, written.mask.new_ones(batch, 1)], 1)
    cached = int(cache.get_seq_length()) if cache is not None else 0
    real = given.new_ones((batch, cached + length), dtype=torch.bool)
    if layout.real is not None:
        real[:, cached:] = layout.real.to(real.device)
    return real


@contextmanager
def _watched_generate(model: Any, written: list[_Written]) -> Iterator[None]:
    """While open, `written` holds what `model.generate` is writing, while it runs."""
    if not hasattr(model, "generate"):
        yield
        return
    original, own = model.generate, model.__dict__.get("generate")

    # On the instance, in front of the class' own method; where something is there already (another injection), it is called
    # and put back.
    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        written.append(_Written(_given(args, kwargs).shape[1]))
        try:
            return original(*args, **kwargs)
        finally:
            written.pop()

    model.generate = generate
    try:
        yield
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own
