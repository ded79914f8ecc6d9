"""BatchTopK: the strongest N·k latents of a batch of N tokens; a global threshold afterwards (arXiv 2412.06410)."""

from __future__ import annotations

import torch

from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import LinearEncoder
from latentbench.sae.options.topk import BatchTopKOptions
from latentbench.sae.selection import BatchSelection


class BatchTopK(SparseDictionarySAE):
    """Like TopK, with the number of active latents free to differ between tokens."""

    def __init__(self, options: BatchTopKOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        selection = BatchSelection(options.k, options.threshold_momentum)
        super().__init__(options, encoder, encoder.initial_decoder(), selection, squared_error)
