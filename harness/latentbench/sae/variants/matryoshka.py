"""Matryoshka: nested dictionaries of growing size, each reconstructing by itself (arXiv 2503.17547)."""

from __future__ import annotations

from itertools import accumulate

import torch

from latentbench.sae.dictionary import SparseDictionarySAE
from latentbench.sae.encoders import LinearEncoder
from latentbench.sae.options.topk import MatryoshkaOptions
from latentbench.sae.prefixes import GroupLoss
from latentbench.sae.selection import selection


class Matryoshka(SparseDictionarySAE):
    """The loss averages the error of the first groups' latents over the number of groups used."""

    def __init__(self, options: MatryoshkaOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        chosen = selection(options.selection, options.k, options.threshold_momentum)
        objective = GroupLoss(tuple(accumulate(options.groups)))
        super().__init__(options, encoder, encoder.initial_decoder(), chosen, objective)
