"""Options of transcoders, which predict what an MLP adds from what it is given."""

from __future__ import annotations

from typing import ClassVar, Literal

from latentbench.sae.options.base import Activation, ActiveLatents, AuxiliaryK


class TranscoderOptions(AuxiliaryK, ActiveLatents):
    """TopK latents of what an MLP is given, which make what it adds (Dunefsky et al. 2024, arXiv 2406.11944), with AuxK.

    `layer: 3.mlp` says which MLP. Reconstructions are compared with what it adds and take its place in the model.
    """

    implementation: ClassVar[str] = "latentbench.sae.variants.transcoder:Transcoder"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True
    paired: ClassVar[bool] = True

    variant: Literal["transcoder"] = "transcoder"
    skip: bool = False
    """Whether a linear map of the input, from zero on, is added (Paulo et al. 2025, arXiv 2501.18823)."""

    @property
    def max_budget(self) -> int:
        return self.k
