"""Options of matching pursuit."""

from __future__ import annotations

from typing import ClassVar, Literal

from latentbench.sae.options.base import Activation, ActiveLatents


class MatchingPursuitOptions(ActiveLatents):
    """Each of k steps takes the atom that explains most of what is left of the hidden state (MP-SAE, arXiv 2506.03093).

    Encoder and decoder are the same rows of unit norm. A latent that is taken again adds to its activation, so that k latents
    are active at most.
    """

    implementation: ClassVar[str] = "latentbench.sae.variants.pursuit:MatchingPursuit"
    selects: ClassVar[Activation] = "other"
    data_parallel: ClassVar[bool] = True
    budgeted: ClassVar[bool] = True

    variant: Literal["matching_pursuit"] = "matching_pursuit"

    @property
    def max_budget(self) -> int:
        return self.k
