"""k-sparse probing: which domain a document is from, told from k latents.

Each document is the mean of its tokens' codes. For every domain c of C, the k latents with the largest absolute
difference of means between c and the rest are chosen and a logistic regression of "is c" is fitted on them, both on one
half of the documents; a document of the other half is given to the domain whose regression is surest.

    accuracy(k) = 1/C Σ_c (held-out documents of c that are given to c) / (held-out documents of c)

Chance is 1/C. `sparse_probing.residual_accuracy` is the same with all dimensions of the mean hidden state instead of k
latents: what there was to be found. Method: arXiv 2502.16681 (k-sparse probing by mean difference); its tasks and
package are not used, because they need downloads, TransformerLens models and pandas < 3. Version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings, Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView, StageContext

DOMAIN = "which_domain"
"""The task, as a column group of its own."""
_WEIGHT = "sparse_probing.weight"


def _mean(correct: Array, weight: Array) -> Array:
    return correct / weight


class SparseProbing(Study):
    """Accuracy of telling the evaluation domains apart from k latents."""

    displays: ClassVar[Mapping[str, Display]] = {"sparse_probing.accuracy": Display("Probing", 70)}

    metric: Literal["sparse_probing"] = "sparse_probing"
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 4, 16)
    """Numbers of latents."""

    def numbers(self) -> tuple[Estimator, ...]:
        sparse = [
            Estimator(
                "sparse_probing.accuracy", 1, "fraction", True, (_correct(k), _WEIGHT), _mean, params={"latents": k}
            )
            for k in dict.fromkeys(self.k)
        ]
        dense = ("sparse_probing.correct_residual", _WEIGHT)
        return *sparse, Estimator("sparse_probing.residual_accuracy", 1, "fraction", None, dense, _mean)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if len(experiment.dataset.eval) < 2:
            return ("sparse_probing tells evaluation domains apart: name two or more under dataset.eval",)
        return ()

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        data = experiment.dataset.eval
        texts = {name: {**one.plain(), "identity": one.identity(roots)} for name, one in data.items()}
        return {DOMAIN: {"layer": str(experiment.sites[0]), "domains": texts}}

    def run(self, lab: StageContext) -> Findings:
        from latentbench.core.errors import CellFailed
        from latentbench.latents.probing import ProbedDocuments, documents_of

        sae, site = lab.sae, next(iter(lab.saes()))
        tokens = [lab.tokens(name) for name in self.domains(lab.experiment)]
        data = ProbedDocuments.joined([documents_of(lab.model(), sae, site, part) for part in tokens], tokens)
        if problem := data.problem():
            raise CellFailed(f"sparse_probing: {problem}")
        correct = {_correct(k): data.correct(k) for k in dict.fromkeys(self.k)}
        correct["sparse_probing.correct_residual"] = data.correct(None)
        weight = data.weights()
        weighted = {name: hits * weight for name, hits in correct.items()}
        units = {} if data.units is None else {DOMAIN: data.units.of(data.held_out)}
        return Findings({DOMAIN: {**weighted, _WEIGHT: weight}}, units=units)


def _correct(k: int) -> str:
    return f"sparse_probing.correct_{k}"
