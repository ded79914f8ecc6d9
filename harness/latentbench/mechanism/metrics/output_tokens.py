"""`logit_lens` and `token_shift`: which tokens the vector of each layer points to, and at which generated tokens it moves probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.mechanism.metrics.study import MechanismStudy, vector_problems
from latentbench.metrics.base import Estimator
from latentbench.statistics.arrays import Array
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView


class LogitLens(Study):
    """cos(w_t, v) and w_t · v of the unembedding's rows w_t with the vector v of each layer.

    Reported per layer: the highest and the lowest cosine. The tokens themselves are in the steering report.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 5.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.mechanism.output_tokens:measure_logit_lens"

    metric: Literal["logit_lens"] = "logit_lens"
    tokens: PositiveInt = 20
    """Tokens listed at either end."""

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return vector_problems(self.metric, experiment)


class TokenShift(MechanismStudy):
    """Total variation ½ Σ_t |p_steered − p_unsteered| over the steered model's own text.

    * `first`: at the first generated token; `rest`: mean over all others;
    * `share_first`: of the total over all generated tokens, what falls on the first.

    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 6.
    """

    implementation: ClassVar[str] = "latentbench.mechanism.output_tokens:measure_token_shift"

    metric: Literal["token_shift"] = "token_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        return (
            _number("first", ("first", "passages"), lambda first, passages: first / passages),
            _number("rest", ("rest", "others"), lambda rest, others: rest / others),
            _number("share_first", ("first", "rest"), lambda first, rest: first / (first + rest)),
        )


def _number(name: str, inputs: tuple[str, ...], formula: Callable[..., Array]) -> Estimator:
    return Estimator(
        id=f"token_shift.{name}",
        version=1,
        unit="fraction" if name == "share_first" else "total variation",
        higher_is_better=None,
        inputs=tuple(f"token_shift.{item}" for item in inputs),
        formula=formula,
        units="problems",
    )
