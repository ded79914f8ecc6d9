"""How well latents match those of the layer before (Feature Flow, arXiv 2502.03032, §3.2), version 1.

Over latents of residual sites that fire at least once on the domain and have a residual site before theirs; s(P) is the
cosine between the decoder rows of a latent and of its best match in P, whatever chose the match.

=================  ====================================================================  ===========
number             formula                                                               better
=================  ====================================================================  ===========
`rate`             share of latents with s(R) ≥ `flow.thresholds.cut`, or ≥ what         higher
                   chance gives with `flow.thresholds.chance` where that is more
`score`            mean s(R)                                                             higher
`translated`       share with high s(R), low s(M) and s(A)                               (a property)
`processed`        share with high s(R), and high s(M) or s(A)                           (a property)
`newborn`          share with low s(R), and high s(M) or s(A)                            (a property)
`unexplained`      share with everything low                                             (a property)
=================  ====================================================================  ===========

High is `flow.thresholds.residual` and `.module`, raised to what chance gives likewise; the cut-offs applied are in the
report and in exported graphs. Units are latents, drawn evenly from all layers; those of two seeds are not the same, so
nothing is paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.metrics.base import Estimator
from latentbench.metrics.flow.base import FlowStudy, share
from latentbench.metrics.study import Findings

if TYPE_CHECKING:
    from latentbench.lab import Lab


class FlowMatching(FlowStudy):
    """Matching rate, mean score and where latents come from."""

    version: ClassVar[int] = 1

    metric: Literal["flow_matching"] = "flow_matching"
    latents: PositiveInt = 4096
    """Latents that intervals are computed over, drawn at random where more fire."""

    def numbers(self) -> tuple[Estimator, ...]:
        def number(name: str, statistic: str, unit: str, better: bool | None) -> Estimator:
            inputs = (f"flow_matching.{statistic}", "flow_matching.latents")
            return Estimator(f"flow_matching.{name}", 1, unit, better, inputs, share, units="latents", paired=False)

        labels = ("translated", "processed", "newborn", "unexplained")
        return (
            number("rate", "matched", "fraction", True),
            number("score", "cosine", "cosine", True),
            *(number(label, label, "fraction", None) for label in labels),
        )

    def run(self, lab: Lab) -> Findings:
        from latentbench.flow.studies.matching import run

        return run(self, lab)
