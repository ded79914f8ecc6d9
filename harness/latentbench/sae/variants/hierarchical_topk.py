"""HierarchicalTopK: a TopK SAE whose loss averages the error over budgets j ≤ k (arXiv 2505.24473)."""

from __future__ import annotations

import torch

from latentbench.sae.dictionary import SparseDictionarySAE
from latentbench.sae.encoders import LinearEncoder
from latentbench.sae.options.topk import HierarchicalTopKOptions
from latentbench.sae.prefixes import BudgetLoss
from latentbench.sae.selection import TokenSelection


class HierarchicalTopK(SparseDictionarySAE):
    """One set of weights for every budget: `encode(x, j)` keeps the j strongest latents."""

    def __init__(self, options: HierarchicalTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        objective = BudgetLoss(options.budgets or tuple(range(1, options.k + 1)))
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), objective)
