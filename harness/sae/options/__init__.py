"""What a spec can say about an SAE (no torch here): one frozen section per variant.

A variant plugs in with one class here (or in another package, through the entry-point group
`latentbench.variants`) and one torch module that it names in `implementation`.
"""

from __future__ import annotations

from harness.sae.options.base import AuxiliaryK, Dictionary, Share, Variant
from harness.sae.options.kron import KronOptions
from harness.sae.options.topk import BatchTopKOptions, HierarchicalTopKOptions, MatryoshkaOptions, TopKOptions

NATIVE: dict[str, type[Variant]] = {
    "batch_topk": BatchTopKOptions,
    "hierarchical_topk": HierarchicalTopKOptions,
    "kron": KronOptions,
    "matryoshka": MatryoshkaOptions,
    "topk": TopKOptions,
}
"""The variants of this package by the name a spec uses."""

__all__ = [
    "NATIVE",
    "AuxiliaryK",
    "BatchTopKOptions",
    "Dictionary",
    "HierarchicalTopKOptions",
    "KronOptions",
    "MatryoshkaOptions",
    "Share",
    "TopKOptions",
    "Variant",
]
