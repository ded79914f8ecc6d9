"""TopK: z = TopK(ReLU(W_enc (x − b_dec) + b_enc)) (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

import torch

from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import LinearEncoder
from latentbench.sae.options.topk import TopKOptions
from latentbench.sae.selection import TokenSelection


class TopK(SparseDictionarySAE):
    """The k strongest latents of every token; decoder rows start as the encoder's unit rows."""

    def __init__(self, options: TopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        super().__init__(options, encoder, encoder.initial_decoder(), TokenSelection(options.k), squared_error)
