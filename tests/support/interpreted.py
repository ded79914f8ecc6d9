"""Errors of the sparse products' kernels, on any device (`checks`), and printed as JSON from Triton's interpreter:
`python -m tests.support.interpreted`.

A process of its own, because TRITON_INTERPRET must be set before Triton is imported. Every reference is dense autograd in
float64, except that the training losses of whole variants are compared with the torch path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.sae.autoencoder import Codes, TrainableSAE
from latentbench.sae.memory import gradients
from latentbench.sae.options import (
    BatchTopKOptions,
    HierarchicalTopKOptions,
    KronOptions,
    MatryoshkaOptions,
    RandomDecoderOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.sparse_kernels import dispatch
from latentbench.sae.sparse_kernels.autograd import attach, sparse_decode
from latentbench.sae.sparse_kernels.dispatch import agree
from latentbench.sae.trainer import NativeTrainer
from latentbench.sae.variants.topk import BudgetLoss, prefix_loss

Grads = dict[str, Tensor]


class Problem(NamedTuple):
    """Codes with padding, latents that many tokens share (also twice in one token) and latents that never fire."""

    values: Tensor
    indices: Tensor
    weight: Tensor
    bias: Tensor
    x: Tensor

    @staticmethod
    def of(n: int, active: int, width: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype, generator=generator)

        values = normal(n, active)
        values[torch.rand(n, active, generator=generator) < 0.2] = 0
        values[-1] = 0
        indices = torch.randint(0, max(1, width - 2), (n, active), generator=generator)
        return Problem(values, indices, normal(width, d), normal(d), normal(n, d))

    def to(self, device: torch.device) -> Problem:
        """The same, somewhere else."""
        return Problem(*(t.to(device) for t in self))


CPU = torch.device("cpu")
SHAPES = {
    "odd": (6, 3, 12, 13),
    "one": (2, 1, 1, 1),
    "few latents": (19, 4, 6, 33),
    "two blocks of dimensions": (3, 3, 5, 515),
    "many entries per token": (3, 11, 30, 16),
}


@contextmanager
def dirty() -> Iterator[None]:
    """Gradients start in memory full of NaN: what a kernel forgets to write shows."""
    take = gradients.take
    gradients.take = lambda *a, **k: take(*a, **k).fill_(nan)  # type: ignore[method-assign]
    yield
    gradients.take = take  # type: ignore[method-assign]


def error(own: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number; infinite where a NaN is."""
    worst = (own - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300)
    return float(worst) if bool(own.isfinite().all()) else float("inf")


def worst(own: Grads, wanted: Grads) -> float:
    """The largest `error` of all."""
    assert own.keys() == wanted.keys()
    return max(error(own[name], wanted[name]) for name in own)


def differentiated(loss: Callable[[Grads], Tensor], leaves: Grads) -> Grads:
    """The loss and its gradients by `leaves`."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()))
    assert value != 0, "nothing is tested"
    return {"loss": value.detach(), **dict(zip(leaves, found, strict=True))}


def decoded(p: Problem) -> tuple[Grads, Grads]:
    """A weighted sum of the reconstruction: own and dense."""

    def own(t: Grads) -> Tensor:
        return (sparse_decode(Codes(t["values"], p.indices), t["weight"], t["bias"]) * p.x).sum()

    def dense(t: Grads) -> Tensor:
        latents = Codes(t["values"] * (p.values != 0), p.indices).dense(len(p.weight))
        return ((latents @ t["weight"] + t["bias"]) * p.x).sum()

    leaves = {"values": p.values, "weight": p.weight, "bias": p.bias}
    return differentiated(own, leaves), differentiated(dense, leaves)


def encoded(p: Problem) -> tuple[Grads, Grads]:
    """A weighted sum of selected pre-activations; `values` are the weights, some of them zero."""
    bias = torch.randn(len(p.weight), dtype=p.x.dtype, generator=torch.Generator().manual_seed(9)).to(p.x.device)

    def dense(t: Grads) -> Tensor:
        pre = (t["x"] - t["shift"]) @ t["weight"].t() + t["bias"]
        return (pre.gather(1, p.indices) * p.values).sum()

    def own(t: Grads) -> Tensor:
        with torch.no_grad():
            values = ((t["x"] - t["shift"]) @ t["weight"].t() + t["bias"]).gather(1, p.indices)
        codes = Codes(values, p.indices)
        attached = attach(codes, t["x"] - t["shift"].detach(), t["weight"], t["bias"], t["shift"])
        return (attached.values * p.values).sum()

    leaves = {"x": p.x, "shift": p.bias, "weight": p.weight, "bias": bias}
    return differentiated(own, leaves), differentiated(dense, leaves)


def prefixes(p: Problem, shares: Tensor) -> tuple[Grads, Grads]:
    """The loss over prefixes with given shares [N or 1, A + 1]."""

    def own(t: Grads) -> Tensor:
        return prefix_loss(Codes(t["values"], p.indices), t["weight"], t["bias"], p.x, shares).loss

    leaves = {"values": p.values, "weight": p.weight, "bias": p.bias}
    return differentiated(own, leaves), dense_prefixes(p, shares)


def dense_prefixes(p: Problem, shares: Tensor) -> Grads:
    """What `prefixes` must give."""

    def dense(t: Grads) -> Tensor:
        values, total = t["values"] * (p.values != 0), p.x.new_zeros(())
        for r in range(shares.shape[1]):
            latents = Codes(values[:, :r], p.indices[:, :r]).dense(len(p.weight))
            squares = (p.x - t["bias"] - latents @ t["weight"]).pow(2).sum(1)
            total = total + (shares[:, r] * squares).sum() / len(p.x)
        return total

    return differentiated(dense, {"values": p.values, "weight": p.weight, "bias": p.bias})


def all_shares(p: Problem) -> dict[str, Tensor]:
    """Every prefix; some; budgets with repeats and beyond the end; other ones per token; none."""
    active, generator = p.values.shape[1], torch.Generator().manual_seed(4)
    dense = torch.rand(1, active + 1, dtype=p.x.dtype, generator=generator)
    own = torch.rand(len(p.x), active + 1, dtype=p.x.dtype, generator=generator)
    repeated = torch.zeros(1, active + 1, dtype=p.x.dtype)
    repeated[0, 1], repeated[0, active] = 0.75, repeated[0, active] + 0.25
    kept = torch.rand(own.shape, generator=generator) < 0.5
    made = {
        "every prefix": dense,
        "two budgets": repeated,
        "per token": own * kept,
        "full only": dense * 0 + (torch.arange(active + 1) == active),
    }
    return {name: shares.to(p.x.device) for name, shares in made.items()}


def budgets(p: Problem) -> tuple[Grads, Grads]:
    """`BudgetLoss` with repeated budgets and one that is larger than the number of entries."""
    ends = (1, 2, 2, 99)

    def own(t: Grads) -> Tensor:
        return BudgetLoss(ends)(Codes(t["values"], p.indices), t["weight"], t["bias"], p.x).loss

    shares = p.x.new_zeros(1, p.values.shape[1] + 1)
    for end in ends:
        shares[0, min(end, p.values.shape[1])] += 1 / len(ends)
    leaves = {"values": p.values, "weight": p.weight, "bias": p.bias}
    return differentiated(own, leaves), dense_prefixes(p, shares)


D, WIDTH, K, N = 7, 24, 3, 9
VARIANTS: dict[str, Variant] = {
    "topk": TopKOptions(width=WIDTH, k=K),
    "batch_topk": BatchTopKOptions(width=WIDTH, k=K),
    "hierarchical_topk": HierarchicalTopKOptions(width=WIDTH, k=6),
    "hierarchical_topk, some budgets": HierarchicalTopKOptions(width=WIDTH, k=K, budgets=(1, 3)),
    "matryoshka": MatryoshkaOptions(width=WIDTH, k=K, groups=(3, 6, 15)),
    "kron": KronOptions(width=WIDTH, k=K, m=2, n=4),
    "kron, product, hierarchical": KronOptions(width=WIDTH, k=K, m=2, n=2, kernel="product", selection="hierarchical"),
    "random_decoder": RandomDecoderOptions(width=WIDTH, k=K),
}


def variant(options: Variant, device: torch.device, kernels: str) -> tuple[Grads, Grads]:
    """Loss, with AuxK, and gradients of a whole SAE: by `kernels` and by torch."""
    return _variant(options, device, kernels), _variant(options, device, "torch")


def _variant(options: Variant, device: torch.device, name: str) -> Grads:
    sae = options.build(D, torch.Generator().manual_seed(3)).double().to(device)
    assert isinstance(sae, TrainableSAE)
    x = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(device) * 2 + 0.3
    dead = torch.arange(sae.width, device=device) % 5 == 0
    with dispatch.forced(name):
        loss = sae.loss(x, dead, 0, 10)
        trainable = {key: p for key, p in sae.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss.total, list(trainable.values()))
    return {"loss": loss.total.detach(), "firing": loss.firing, **dict(zip(trainable, found, strict=True))}


def trained(name: str, device: torch.device) -> Grads:
    """Weights after two steps of the trainer in float32."""
    sae = HierarchicalTopKOptions(width=WIDTH, k=K).build(D, torch.Generator().manual_seed(3))
    assert isinstance(sae, TrainableSAE)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(5)).to(device)
    trainer = NativeTrainer(sae, Site(index=0), TrainingOptions(batch=N), steps=9, first_norm=3.0, mean=x.mean(0))
    with dispatch.forced(name):
        for _ in range(2):
            trainer.step(x)
    return {key: p.detach() for key, p in sae.named_parameters()}


def padding_is_not_read(device: torch.device) -> float:
    """1 where a NaN in an atom that only padding names gets into a result."""
    p = Problem.of(*SHAPES["odd"])
    p.weight[-1] = nan
    p.indices[p.values == 0] = len(p.weight) - 1
    p = p.to(device)
    found = [*decoded(p)[0].values(), *prefixes(p, all_shares(p)["every prefix"])[0].values()]
    return float(any(bool(t.isnan().any()) for t in found))


def agreement(device: torch.device) -> float:
    """0 where the check that is made on every GPU passes and would catch a wrong gradient."""
    from latentbench.sae.sparse_kernels.triton_backend import TritonBackend

    class Wrong(TritonBackend):
        def encode_backward(self, dvalues: Tensor, indices: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
            dweight, dbias = super().encode_backward(dvalues, indices, x, width)
            return dweight * 1.1, dbias

    own = TritonBackend()
    return float(not agree(own, dispatch.TORCH, device) or agree(Wrong(), dispatch.TORCH, device))


def differing(device: torch.device) -> float:
    """How many results of two runs in float32 differ in any byte."""
    count = 0
    p = Problem.of(9, 3, 4, 19, dtype=torch.float32).to(device)
    for run in (decoded, encoded, budgets):
        first, second = run(p)[0], run(p)[0]
        count += sum(not torch.equal(first[name], second[name]) for name in first)
    return float(count)


def checks(device: torch.device = CPU, kernels: str = "triton") -> dict[str, Callable[[], float]]:
    """Every comparison by name: what gives its error. `kernels` computes whole variants ("": whatever fits)."""

    def apart(both: Callable[[], tuple[Grads, Grads]]) -> Callable[[], float]:
        return lambda: worst(*both())

    odd, found = Problem.of(*SHAPES["odd"]).to(device), dict[str, Callable[[], float]]()
    for name, shape in SHAPES.items():
        p = Problem.of(*shape).to(device)
        found[f"decode: {name}"] = apart(partial(decoded, p))
        found[f"encode: {name}"] = apart(partial(encoded, p))
        found[f"prefixes: {name}"] = apart(partial(prefixes, p, all_shares(p)["every prefix"]))
    found["budgets"] = apart(partial(budgets, odd))
    for kind, shares in all_shares(odd).items():
        found[f"prefixes, {kind}"] = apart(partial(prefixes, odd, shares))
    for name, options in VARIANTS.items():
        found[f"variant: {name}"] = apart(partial(variant, options, device, kernels))
    found["trainer in float32"] = lambda: worst(trained(kernels, device), trained("torch", device))
    found["padding"] = partial(padding_is_not_read, device)
    found["two runs"] = partial(differing, device)
    found["check on a GPU"] = partial(agreement, device)
    return found


if __name__ == "__main__":
    from latentbench.sae.sparse_kernels.triton_backend import BLOCK_D

    torch.set_num_threads(1)
    assert BLOCK_D < SHAPES["two blocks of dimensions"][-1] <= 2 * BLOCK_D
    assert dispatch.backend(torch.ones(1)).name == "triton"
    with dirty():
        json.dump({name: check() for name, check in checks().items()}, sys.stdout)
