"""KronSAE: TopK over pairwise ANDs of a small encoder's outputs (arXiv 2505.22255)."""

from __future__ import annotations

import torch

from latentbench.sae.dictionary import Objective, SparseDictionarySAE, squared_error
from latentbench.sae.kron import KronEncoder
from latentbench.sae.options.kron import KronOptions
from latentbench.sae.prefixes import BudgetLoss
from latentbench.sae.selection import selection


class Kron(SparseDictionarySAE):
    """The encoder reads x itself (not x − b_dec); decoder rows start as P_i + Q_j, normalised (App. H)."""

    centred = False

    def __init__(self, options: KronOptions, d_in: int, generator: torch.Generator) -> None:
        o = options
        encoder = KronEncoder(d_in, o.head_count, o.m, o.n, o.kernel, o.k, generator)
        chosen = selection("batch_topk" if o.selection == "batch_topk" else "topk", o.k, o.threshold_momentum)
        budgets = o.budgets or tuple(range(1, o.k + 1))
        objective: Objective = BudgetLoss(budgets) if o.selection == "hierarchical" else squared_error
        super().__init__(o, encoder, encoder.initial_decoder(), chosen, objective)
