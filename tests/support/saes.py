"""Small SAEs of every native variant with random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.sae import options as o
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench_adapters.sae_lens.options import SaeLensGatedOptions as SaeLensGated
from latentbench_adapters.sae_lens.options import SaeLensJumpReluOptions, SaeLensOptions
from latentbench_adapters.sae_lens.options import SaeLensStandardOptions as SaeLensStandard

D_IN, WIDTH, K = 12, 48, 5

Weights = dict[str, Tensor]


def random(seed: int = 0, **shapes: tuple[int, ...]) -> Weights:
    """Random tensors; `__` in a name stands for a dot."""
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def strongest(latents: Tensor, k: int) -> Tensor:
    """Dense latents with all but the k largest of each token set to zero."""
    top = latents.topk(k, dim=-1)
    return torch.zeros_like(latents).scatter(-1, top.indices, top.values)


def hidden_states(count: int = 96, d_in: int = D_IN) -> Tensor:
    """Hidden states [count, d_in] with a mean, the same every time."""
    generator = torch.Generator().manual_seed(7)
    return 2 * torch.randn(count, d_in, generator=generator) + torch.randn(d_in, generator=generator)


def randomised(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """`sae` with noise on every weight and thresholds that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.state_dict(keep_vars=True).items():
            if name.endswith("threshold") and "log" not in name:
                tensor.fill_(0.8)
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return sae.eval().requires_grad_(False)


def built(options: o.Variant, *bases: SparseAutoencoder, seed: int = 0) -> SparseAutoencoder:
    """A random SAE of these options."""
    return randomised(options.build(D_IN, torch.Generator().manual_seed(seed), bases), seed)


BASE = {"variant": "topk", "width": WIDTH, "k": K}

PLAIN: dict[str, tuple[o.Variant | SaeLensOptions, str, str]] = {
    "topk": (o.TopKOptions(width=WIDTH, k=K), "topk", "exact"),
    "batch_topk": (o.BatchTopKOptions(width=WIDTH, k=K), "jumprelu", "exact"),
    "hierarchical": (o.HierarchicalTopKOptions(width=WIDTH, k=K), "topk", "exact at k=5"),
    "matryoshka": (o.MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32)), "jumprelu", "exact"),
    "matryoshka_topk": (o.MatryoshkaOptions(width=WIDTH, k=K, groups=(16, 32), selection="topk"), "topk", "exact"),
    "abs_topk": (o.AbsTopKOptions(width=WIDTH, k=K), "abstopk", "exact"),
    "multi_topk": (o.MultiTopKOptions(width=WIDTH, k=K), "topk", "exact at k=5"),
    "matching_pursuit": (o.MatchingPursuitOptions(width=WIDTH, k=K), "matching_pursuit", "exact"),
    "standard": (o.StandardOptions(width=WIDTH), "standard", "exact"),
    "p_anneal": (o.PAnnealOptions(width=WIDTH), "standard", "exact"),
    "gated": (o.GatedOptions(width=WIDTH), "gated", "exact"),
    "jumprelu": (o.JumpReLUOptions(width=WIDTH), "jumprelu", "exact"),
    "random_decoder": (o.RandomDecoderOptions(width=WIDTH, k=K), "topk", "exact"),
    "untrained": (o.UntrainedOptions(width=WIDTH, k=K), "topk", "exact"),
    "kron_groups": (
        o.KronOptions(width=WIDTH, k=K, m=2, n=4, groups=(16, 32)),
        "latentbench_kron",
        "registered class latentbench_kron, exact",
    ),
    "kron_jumprelu": (
        o.KronJumpReLUOptions(width=WIDTH, m=2, n=4),
        "latentbench_kron",
        "registered class latentbench_kron, exact",
    ),
    "sae_lens_standard": (SaeLensStandard(width=WIDTH, l1=0.1), "standard", "exact"),
    "sae_lens_gated": (SaeLensGated(width=WIDTH, l1=0.1), "gated", "exact"),
    "sae_lens_jumprelu": (SaeLensJumpReluOptions(width=WIDTH, l0=0.1), "jumprelu", "exact"),
    **{
        f"kron_{kernel}_{selection}": (
            o.KronOptions.model_validate(
                {"width": WIDTH, "k": K, "m": 2, "n": 4, "kernel": kernel, "selection": selection}
            ),
            "latentbench_kron",
            "registered class latentbench_kron, exact" + (" at k=5" if selection == "hierarchical" else ""),
        )
        for kernel in ("mand", "relu_product", "product")
        for selection in ("topk", "batch_topk", "hierarchical")
    },
}
"""Options, sae-lens' class and the kind of equivalence by name."""


def on_bases() -> dict[str, tuple[SparseAutoencoder, str, str]]:
    """SAEs that stand on others: the SAE, sae-lens' class and the kind of equivalence, by name."""
    top, threshold = built(PLAIN["topk"][0]), built(PLAIN["jumprelu"][0])
    mixed = "registered class latentbench_groups, exact"
    boosted = o.BoostedOptions(base=BASE, width=16, k=3)
    per_token = o.BoostedOptions(base=BASE, width=16, k=3, selection="topk")
    ensemble = o.EnsembleOptions(boosts=(boosted.plain(), boosted.plain()))
    pair = (built(boosted, threshold, seed=1), built(boosted, threshold, seed=2))
    tuned: dict[str, tuple[o.Variant, str, str]] = {
        "fine_tuned": (o.FineTunedOptions(base=BASE), "topk", "exact"),
        "extended": (o.ExtendedOptions(base=BASE, extra_width=8, extra_k=2), "topk", "exact"),
        "stitched": (o.StitchedOptions(base=BASE, grafted=4), "topk", "exact"),
    }
    with_k = o.FineTunedOptions(base=BASE, k=K), o.StitchedOptions(base=BASE, grafted=4, k=K)
    return {
        "fine_tuned_thresholds": (built(with_k[0], threshold), "jumprelu", "exact"),
        "stitched_thresholds": (built(with_k[1], threshold), "jumprelu", "exact"),
        "boosted": (built(boosted, threshold), "jumprelu", "exact"),
        "boosted_topk_base": (built(boosted, top), "latentbench_groups", mixed),
        "boosted_twice": (built(per_token, built(per_token, top), seed=3), "latentbench_groups", mixed),
        "ensemble": (ensemble.build(D_IN, torch.Generator(), pair), "jumprelu", "exact"),
        **{name: (built(options, top), kind, exact) for name, (options, kind, exact) in tuned.items()},
    }
