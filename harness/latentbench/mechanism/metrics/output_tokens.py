"""`logit_lens` and `token_shift`: which tokens the vector of each layer points to, and at which generated tokens it moves probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.mechanism.metrics.study import DOMAIN, MechanismStudy, injection_of, ones, vector_problems
from latentbench.metrics.base import Estimator
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings, Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView, StageContext


class LogitLens(Study):
    """cos(w_t, v) and w_t · v of the unembedding's rows w_t with the vector v of each layer.

    Reported per layer: the highest and the lowest cosine. The tokens themselves are in the steering report.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 5.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})

    metric: Literal["logit_lens"] = "logit_lens"
    tokens: PositiveInt = 20
    """Tokens listed at either end."""

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        return vector_problems(self.metric, experiment)

    def run(self, lab: StageContext) -> Findings:
        from latentbench.mechanism.output_tokens import vector_logit_lens

        lm = lab.model()
        readings = {
            layer: vector_logit_lens(lm, v, self.tokens) for layer, v in injection_of(lab).vectors.vectors.items()
        }
        values = [
            self._value(f"logit_lens.{end}_cosine", layer, tokens[0]["cosine"])
            for layer, reading in readings.items()
            for end, tokens in (("top", reading.top), ("bottom", reading.bottom))
        ]
        layers = [{"layer": layer, "top": r.top, "bottom": r.bottom} for layer, r in readings.items()]
        return Findings(values=tuple(values), details={"layers": layers})

    def _value(self, name: str, layer: int, value: float) -> MetricValue:
        return MetricValue(
            id=name, version=self.version, value=value, unit="cosine", higher_is_better=None, params={"layer": layer}
        )


class TokenShift(MechanismStudy):
    """Total variation ½ Σ_t |p_steered − p_unsteered| over the steered model's own text.

    * `first`: at the first generated token; `rest`: mean over all others;
    * `share_first`: of the total over all generated tokens, what falls on the first.

    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 6.
    """

    metric: Literal["token_shift"] = "token_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        return (
            _number("first", ("first", "passages"), lambda first, passages: first / passages),
            _number("rest", ("rest", "others"), lambda rest, others: rest / others),
            _number("share_first", ("first", "rest"), lambda first, rest: first / (first + rest)),
        )

    def run(self, lab: StageContext) -> Findings:
        from latentbench.mechanism.output_tokens import probability_shift

        lm, passages = lab.model(), self.passages(lab)
        shift = probability_shift(lm, lab.subject(), passages)
        statistics = {"first": shift.first, "rest": shift.rest, "others": shift.others, "passages": ones(shift.first)}
        named = {f"token_shift.{name}": values for name, values in statistics.items()}
        details = {"tokens": shift.tokens(lm), "passages": len(passages)}
        return Findings({DOMAIN: named}, details=details, units=self.units(lab))


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
