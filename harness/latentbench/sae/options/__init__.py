"""What a spec can say about an SAE (no torch here): one frozen section per variant.

A variant plugs in with one class here (or in another package, through the entry-point group
`latentbench.variants`) and one torch module that it names in `implementation`.
"""

from __future__ import annotations

from latentbench.sae.options.base import Activation, AuxiliaryK, AuxiliaryLoss, Dictionary, Share, Variant
from latentbench.sae.options.boosting import (
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    StitchedOptions,
)
from latentbench.sae.options.controls import (
    IdentityOptions,
    MeanOptions,
    PCAOptions,
    RandomDecoderOptions,
    UntrainedOptions,
)
from latentbench.sae.options.kron import KronOptions
from latentbench.sae.options.penalised import GatedOptions, JumpReLUOptions, StandardOptions
from latentbench.sae.options.topk import BatchTopKOptions, HierarchicalTopKOptions, MatryoshkaOptions, TopKOptions

NATIVE: dict[str, type[Variant]] = {
    "batch_topk": BatchTopKOptions,
    "boost_ensemble": EnsembleOptions,
    "boosted": BoostedOptions,
    "extended": ExtendedOptions,
    "fine_tuned": FineTunedOptions,
    "gated": GatedOptions,
    "hierarchical_topk": HierarchicalTopKOptions,
    "identity": IdentityOptions,
    "jumprelu": JumpReLUOptions,
    "kron": KronOptions,
    "matryoshka": MatryoshkaOptions,
    "mean": MeanOptions,
    "pca": PCAOptions,
    "random_decoder": RandomDecoderOptions,
    "standard": StandardOptions,
    "stitched": StitchedOptions,
    "topk": TopKOptions,
    "untrained": UntrainedOptions,
}
"""The variants of this package by the name a spec uses."""

__all__ = [
    "NATIVE",
    "Activation",
    "AuxiliaryK",
    "AuxiliaryLoss",
    "BatchTopKOptions",
    "BoostedOptions",
    "Dictionary",
    "EnsembleOptions",
    "ExtendedOptions",
    "FineTunedOptions",
    "GatedOptions",
    "HierarchicalTopKOptions",
    "IdentityOptions",
    "JumpReLUOptions",
    "KronOptions",
    "MatryoshkaOptions",
    "MeanOptions",
    "PCAOptions",
    "RandomDecoderOptions",
    "Share",
    "StandardOptions",
    "StitchedOptions",
    "TopKOptions",
    "UntrainedOptions",
    "Variant",
]
