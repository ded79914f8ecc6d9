"""Adapters trained to predict texts that have a concept: a low-rank one on the down-projection, or an edit of the residual stream."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.vocabulary import padding_of
from latentbench.concepts.options import AdapterTraining
from latentbench.concepts.texts import right_padded
from latentbench.core.errors import CellFailed
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.changing import changing
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.lora import trainable_lora
from latentbench.interventions.reft import SubspaceEdit, editing
from latentbench.steering.build import width_of

Weights = dict[str, Tensor]


class TrainedAdapter(ABC):
    """What is trained: parameters, installed on a model for a while."""

    @abstractmethod
    def installed(self, lm: LanguageModel) -> AbstractContextManager[Mapping[str, nn.Parameter]]:
        """While open, the adapter is a part of the model; gives its parameters by name."""

    def weights(self, parameters: Mapping[str, nn.Parameter]) -> Weights:
        """What is kept of the parameters, on the CPU."""
        return {name: parameter.detach().float().cpu().clone() for name, parameter in parameters.items()}


class LowRankAdapter(TrainedAdapter):
    """peft's LoRA layer on one block's down-projection, A from the seed and B zero."""

    def __init__(self, layer: int, rank: int, seed: int) -> None:
        self._layer, self._rank, self._seed = layer, rank, seed

    def installed(self, lm: LanguageModel) -> AbstractContextManager[Mapping[str, nn.Parameter]]:
        return trainable_lora(lm, (self._layer,), self._rank, self._seed)


class LearnedEdit(TrainedAdapter):
    """An edit that starts as none: W = R from the seed, b = 0 in units of `length`, so that one learning rate fits all of it."""

    def __init__(self, layer: int, rank: int, seed: int, length: float) -> None:
        self._layer, self._rank, self._seed, self._length = layer, rank, seed, length

    @contextmanager
    def installed(self, lm: LanguageModel) -> Iterator[Mapping[str, nn.Parameter]]:
        drawn = torch.randn(self._rank, width_of(lm.model), generator=torch.Generator().manual_seed(self._seed))
        start = {"R": orthonormal_rows(drawn), "W": orthonormal_rows(drawn), "b": torch.zeros(self._rank)}
        named = {name: nn.Parameter(tensor.to(lm.device)) for name, tensor in start.items()}

        def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
            return editing(self._edit(named))(hidden, strength)

        with changing(lm.model, {Site(index=self._layer): change}, idle=True):
            yield named

    def weights(self, parameters: Mapping[str, nn.Parameter]) -> Weights:
        edit = self._edit(parameters)
        made = {"R": edit.basis, "W": edit.weight, "b": edit.bias}
        return {name: tensor.detach().float().cpu().clone() for name, tensor in made.items()}

    def _edit(self, parameters: Mapping[str, nn.Parameter]) -> SubspaceEdit:
        return SubspaceEdit(orthonormal_rows(parameters["R"]), parameters["W"], self._length * parameters["b"])


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Orthonormal rows [r, d] with the span of `rows` [r, d], of which each points where its own row does."""
    basis, triangle = torch.linalg.qr(rows.T)
    turned: Tensor = (basis * torch.sign(torch.diagonal(triangle))).T.contiguous()
    return turned


def trained(
    adapter: TrainedAdapter, options: AdapterTraining, lm: LanguageModel, texts: Sequence[str], seed: int
) -> tuple[Weights, list[float]]:
    """The weights after all steps, and the loss of each step in nats per token. Raises CellFailed where it is not finite."""
    rows = [row[: options.tokens] for row in prompt_ids(lm, texts)]
    batches, curve = _batches([row for row in rows if len(row) > 1], options, seed), []
    with adapter.installed(lm) as parameters, torch.enable_grad():
        optimizer = torch.optim.AdamW(list(parameters.values()), lr=options.learning_rate, weight_decay=0.0)
        for _ in range(options.steps):
            loss = _loss(lm, next(batches))
            gradients: Any = torch.autograd.grad(loss, list(parameters.values()))
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            curve.append(float(loss.detach()))
        weights = adapter.weights(parameters)
    if not all(map(torch.Tensor.all, (tensor.isfinite() for tensor in weights.values()))):
        raise CellFailed("an adapter's weights are not finite after its training; lower `adapter.learning_rate`")
    return weights, curve


def _batches(rows: Sequence[list[int]], options: AdapterTraining, seed: int) -> Iterator[list[list[int]]]:
    """Batches without end: the texts in a new order again and again."""
    draw = random.Random(seed)
    left: list[list[int]] = []
    while True:
        while len(left) < options.batch:
            left += draw.sample(list(rows), len(rows))
        batch, left = left[: options.batch], left[options.batch :]
        yield batch


def _loss(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Mean cross-entropy over the predictions of real tokens."""
    ids, real = right_padded(rows, padding_of(lm), lm.device)
    logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1][real[:, 1:]].float(), ids[:, 1:][real[:, 1:]])
