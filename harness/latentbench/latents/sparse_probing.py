"""k-sparse probing: which domain a document is from, told from k latents.

Each document is the mean of its tokens' codes. For every domain c of C, the k latents with the largest absolute
difference of means between c and the rest are chosen and a logistic regression of "is c" is fitted on them, both on one
half of the documents; a document of the other half is given to the domain whose regression is surest.

    accuracy(k) = 1/C Σ_c (held-out documents of c that are given to c) / (held-out documents of c)

Chance is 1/C. `sparse_probing.residual_accuracy` is the same with all dimensions of the mean hidden state instead of k
latents: what there was to be found. Method: arXiv 2502.16681 (k-sparse probing by mean difference); its tasks and
package are not used, because they need downloads, TransformerLens models and pandas < 3. Version 2: massive tokens are left
out, version 1 read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

DOMAIN = "which_domain"
"""The task, as a column group of its own."""
WEIGHT = "sparse_probing.weight"
"""What a document counts, so that every domain counts the same; the statistics of hits are weighted too."""
CORRECT_RESIDUAL = "sparse_probing.correct_residual"


def correct_from(k: int) -> str:
    """The statistic of hits from k latents."""
    return f"sparse_probing.correct_{k}"


class SparseProbing(Study):
    """Accuracy of telling the evaluation domains apart from k latents."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.latents.probing:measure_sparse_probing"
    reads_states: ClassVar[bool] = True
    displays: ClassVar[Mapping[str, Display]] = {"sparse_probing.accuracy": Display("Probing", 70)}

    metric: Literal["sparse_probing"] = "sparse_probing"
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 4, 16)
    """Numbers of latents."""

    def numbers(self) -> tuple[Estimator, ...]:
        sparse = [
            Estimator(
                "sparse_probing.accuracy", 2, "fraction", True, (correct_from(k), WEIGHT), ratio, params={"latents": k}
            )
            for k in dict.fromkeys(self.k)
        ]
        dense = (CORRECT_RESIDUAL, WEIGHT)
        return *sparse, Estimator("sparse_probing.residual_accuracy", 2, "fraction", None, dense, ratio)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if len(experiment.dataset.eval) < 2:
            return ("sparse_probing tells evaluation domains apart: name two or more under dataset.eval",)
        return ()

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        data = experiment.dataset.eval
        texts = {name: {**one.plain(), "identity": one.identity(roots)} for name, one in data.items()}
        return {DOMAIN: {"layer": str(experiment.sites[0]), "domains": texts}}
