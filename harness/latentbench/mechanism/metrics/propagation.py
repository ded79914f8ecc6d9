"""`attention_shift` and `persistence`: how the vector's effect travels through the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from latentbench.core.hashing import file_digest
from latentbench.core.spec_model import Json
from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.metrics.base import Estimator
from latentbench.steering.baselines import vector_file

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

VectorFile = Annotated[str, Field(min_length=1, max_length=500)]


class AttentionShift(MechanismStudy):
    """Change of attention patterns and MLP outputs over the steered model's own text.

    * `heads`: mean over heads, layers and tokens of ½ Σ_s |a_steered(t, s) − a_plain(t, s)|;
    * `mlp`: mean over blocks and tokens of ‖Δmlp‖ / ‖mlp‖.

    By head and block in the steering report. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

    implementation: ClassVar[str] = "latentbench.mechanism.propagation:measure_attention_shift"

    metric: Literal["attention_shift"] = "attention_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        return _mean("attention_shift.heads", "total variation"), _mean("attention_shift.mlp", "ratio")


class Persistence(MechanismStudy):
    """Δ_j(t), what steering has made of the output of every block j behind the first steered one: does it last?

    Δ_j(t) = h_j^steered(t) − h_j^plain(t), before the cell adds anything at block j itself; where it is first added, Δ is
    the vector, so that block does not count.

    * `diff_diff`: mean over tokens and blocks of cos(Δ_j(t), mean_t Δ_j): 1 where the perturbation is the same at every
      token;
    * `diff_vector`: mean over tokens and blocks of cos(Δ_j(t), s_j), over the blocks that have a vector s_j: those that
      `compare_with` names, trained on their own, else (marked `vectors=own`) those that the cell itself adds further up.

    By block in the steering report, with the logit lens of the mean change after the last block, and with `matrix` the cosines
    between the mean changes after the last block that single vectors make, each of the cell's own and each of `compare_with`
    alone: `final_cosine` is the mean of those between two of them. Source: Small Vectors, Big Effects (arXiv 2509.06608),
    section 5.
    """

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.mechanism.propagation:measure_persistence"
    newer: ClassVar[tuple[str, ...]] = (*MechanismStudy.newer, "matrix")
    handling: ClassVar[frozenset[str]] = frozenset({"compare_with"})  # the files' content is in `identity`

    metric: Literal["persistence"] = "persistence"
    compare_with: VectorFile | Annotated[tuple[VectorFile, ...], Field(min_length=1, max_length=1000)] | None = None
    """A file of vectors trained at later layers (see `latentbench export-vectors`), or a list of such files with
    different layers, relative to the project."""
    matrix: Literal["same_texts", "own_texts"] | None = None
    """Compares the vectors' effects on the final residual stream with each other, over the texts that all of the cell's vectors
    wrote together, so that only the vectors differ (`same_texts`), or, as in the paper, for each vector over those that were
    written under it alone (`own_texts`); default: not."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files it compares with."""
        return (self.compare_with,) if isinstance(self.compare_with, str) else self.compare_with or ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        made = super().identity(experiment, roots)
        return {**made, "compare_with": sorted(file_digest(vector_file(path, roots)) for path in self.files)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        for path in self.files:
            vector_file(path, roots)  # raises where there is none
        return super().problems_in(experiment, roots)

    def numbers(self) -> tuple[Estimator, ...]:
        own = {} if self.files else {"vectors": "own"}
        return _mean("persistence.diff_diff", "cosine", 2), _mean("persistence.diff_vector", "cosine", 2, own)


def _mean(name: str, unit: str, version: int = 1, params: Mapping[str, Json] | None = None) -> Estimator:
    return Estimator(
        id=name,
        version=version,
        unit=unit,
        higher_is_better=None,
        inputs=(f"{name}.total", f"{name}.count"),
        formula=lambda summed, number: summed / number,
        units="problems",
        params=params or {},
    )
