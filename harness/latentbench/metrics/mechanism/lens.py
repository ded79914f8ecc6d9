"""`logit_lens`: which tokens the vector of each layer points to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.metrics.mechanism.base import injection_of, without_vectors
from latentbench.metrics.study import Findings, Study
from latentbench.record import MetricValue

if TYPE_CHECKING:
    from latentbench.lab import Lab
    from latentbench.spec.experiment import Experiment
    from latentbench_adapters.protocols import Roots


class LogitLens(Study):
    """cos(w_t, v) and w_t · v of the unembedding's rows w_t with the vector v of each layer.

    Reported per layer: the highest and the lowest cosine. The tokens themselves are in the steering report.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 5.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})

    metric: Literal["logit_lens"] = "logit_lens"
    tokens: PositiveInt = 20
    """Tokens listed at either end."""

    def domains(self, experiment: Experiment) -> tuple[str, ...]:
        return ()

    def problems(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        return without_vectors(self.metric, experiment)

    def run(self, lab: Lab) -> Findings:
        from latentbench.steering.mechanism.lens import read_vector

        lm = lab.model()
        readings = {layer: read_vector(lm, v, self.tokens) for layer, v in injection_of(lab).vectors.vectors.items()}
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
