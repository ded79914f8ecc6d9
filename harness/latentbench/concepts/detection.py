"""`concept_detection`: does a direction find its concept in texts that it was not made from? AxBench's other task (arXiv 2501.17148).

A token's value is h · d for the direction d of the way, h the hidden state behind its block, or the activation of the chosen
latent. Only ordinary tokens count. A token has the label of its text.

==============  ===================================================================================
number          formula, the mean over concepts of an AUROC on held-out texts, as many with as without the concept
==============  ===================================================================================
`text_max`      over texts by the largest value among a text's tokens
`text_mean`     over texts by the mean value
`token`         over all tokens by their own values
==============  ===================================================================================

An AUROC of 0.5 is chance, which `random` shows. Adapters and prompts make no direction, so they have no such number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

DETECTION = "concept_detection"
"""The metric's name, with which the names of its statistics begin, and the domain that they stand in."""
KINDS = ("text_max", "text_mean", "token")


class ConceptDetection(Study):
    """AUROC of finding concepts in held-out texts and tokens, by what hidden states have along a direction."""

    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})
    implementation: ClassVar[str] = "latentbench.concepts.detection_study:measure_concept_detection"
    displays: ClassVar[Mapping[str, Display]] = {
        "concept_detection.text_max": Display("Detection AUROC", 176),
        "concept_detection.text_mean": Display("Detection, mean"),
        "concept_detection.token": Display("Detection, tokens"),
    }

    metric: Literal["concept_detection"] = "concept_detection"
    texts: Annotated[int, Field(ge=8)] = 48
    """Held-out texts with the concept, and as many without it, at most."""

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"token_rule": experiment.token_rule.plain()}

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        concepts = experiment.concepts
        shared = {} if concepts is None else concepts.shared_identity(roots) | {"layer": concepts.layer}
        return {DETECTION: {**shared, "texts": self.texts, "token_rule": experiment.token_rule.plain()}}

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(
            Estimator(
                f"{DETECTION}.{kind}", 1, "fraction", True, (f"{DETECTION}.{kind}", f"{DETECTION}.concepts"), ratio,
                units="concepts",
            )
            for kind in KINDS
        )  # fmt: skip
