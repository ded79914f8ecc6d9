"""What a spec can say about an SAE: one frozen model per variant, all of them importable from here, none importing torch.

A variant plugs in with one class here (or in another package) that stands in the entry-point group
`latentbench.variants`, and one torch class that it names in `implementation`.
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
from latentbench.sae.options.kron import KronJumpReLUOptions, KronOptions
from latentbench.sae.options.penalised import GatedOptions, JumpReLUOptions, PAnnealOptions, StandardOptions
from latentbench.sae.options.pursuit import MatchingPursuitOptions
from latentbench.sae.options.topk import (
    AbsTopKOptions,
    BatchTopKOptions,
    HierarchicalTopKOptions,
    MatryoshkaOptions,
    MultiTopKOptions,
    TopKOptions,
)
from latentbench.sae.options.transcoder import TranscoderOptions

__all__ = [
    "AbsTopKOptions",
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
    "KronJumpReLUOptions",
    "KronOptions",
    "MatchingPursuitOptions",
    "MatryoshkaOptions",
    "MeanOptions",
    "MultiTopKOptions",
    "PAnnealOptions",
    "PCAOptions",
    "RandomDecoderOptions",
    "Share",
    "StandardOptions",
    "StitchedOptions",
    "TopKOptions",
    "TranscoderOptions",
    "UntrainedOptions",
    "Variant",
]
