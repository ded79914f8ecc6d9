"""Logits at chosen positions only: [N, vocabulary] instead of [batch, tokens, vocabulary].

With a vocabulary of 262,144 the logits of 64 texts of 1,000 tokens take 33 GB in bfloat16, of which a task that asks how
likely a short answer is reads a few per text. The output embedding works token by token, so a hook before it can pass on
the hidden states of the positions that are asked for. What a model does around its output embedding is its own affair, so
each is asked once whether it gives the same logits that way; where it does not, all are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import input_device
from latentbench.activations.fitting import out_of_memory
from latentbench.activations.measured_once import once_per_model
from latentbench.core.border import contained


def logits_at(model: nn.Module, mask: Tensor, run: Callable[[], Any]) -> Tensor:
    """Logits [N, vocabulary] at the positions where `mask` [B, T] is true, in row-major order.

    `run` makes one pass of the model over [B, T] tokens and returns the model's output. Nothing else is to depend on the
    hidden states behind the last block: they are not all passed on.
    """
    if not picks(model):
        whole: Tensor = run().logits
        return whole[mask.to(whole.device)]
    with _picking(model, mask) as picked:
        logits: Tensor = run().logits
    return logits[0] if picked else logits[mask.to(logits.device)]


@once_per_model
def picks(model: nn.Module) -> bool:
    """Whether the model gives the same logits where its output embedding sees chosen positions only."""
    return _agrees(model)


@contextmanager
def _picking(model: nn.Module, mask: Tensor) -> Iterator[list[bool]]:
    """While open, the output embedding sees [1, N, d]; the list is empty as long as it was given something else."""
    picked: list[bool] = []

    def pick(head: nn.Module, args: tuple[Any, ...]) -> Any:
        hidden = args[0] if args else None
        if not isinstance(hidden, Tensor) or hidden.shape[:-1] != mask.shape:
            return None
        picked.append(True)
        return (hidden[mask.to(hidden.device)][None], *args[1:])

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()


def _agrees(model: nn.Module) -> bool:
    """Compares both on two short texts."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(model.get_output_embeddings(), nn.Module):  # type: ignore[operator]
        return False
    ids = torch.arange(6, device=input_device(model)).view(2, 3) % len(embedding.weight)
    mask = torch.tensor([[False, True, False], [True, False, True]])
    whole: Tensor = model(input_ids=ids, use_cache=False).logits
    expected = whole[mask.to(whole.device)]
    try:
        with _picking(model, mask) as picked:
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
    except BaseException as error:
        if out_of_memory(error):
            raise
        contained(error)  # a model that needs the logits of all positions for something of its own
        return False
    if not picked or logits.shape != (1, *expected.shape):
        return False
    # The same products, whose sums a matrix of another height may add up in another order.
    scale = float(expected.float().abs().max())
    return bool((logits[0] - expected).float().abs().max() <= 16 * torch.finfo(logits.dtype).eps * scale)
