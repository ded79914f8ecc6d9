"""`first_token_test` and `layer_pairs`: what of the gain is there without the vector, or with some layers of it?"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.core.spec_model import Json
from latentbench.mechanism.metrics.study import DOMAIN, MechanismStudy, injection_of, ones
from latentbench.metrics.base import Estimator
from latentbench.metrics.value import MetricValue
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.study.context import StageContext

Grading = Literal["number", "boxed"]


def _accuracy(metric: str, part: str) -> Estimator:
    return Estimator(
        id=f"{metric}.{part}",
        version=1,
        unit="fraction",
        higher_is_better=None,
        inputs=(f"{metric}.{part}", f"{metric}.problems"),
        formula=lambda right, problems: right / problems,
        units="problems",
    )


class FirstTokenTest(MechanismStudy):
    """Is the vector more than a way to write its favourite first token?

    The token that steering boosts most often at the first generated position is appended to the prompt, and the vector is
    removed. Greedy accuracy on the same problems: `base`, `steered`, `substituted`, and
    `recovered` = (substituted − base) / (steered − base).
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 6 (about three quarters for a last-layer vector).
    """

    metric: Literal["first_token_test"] = "first_token_test"
    graded_by: Grading = "number"
    """What makes an answer right: the last number written, or the last boxed expression."""

    def numbers(self) -> tuple[Estimator, ...]:
        names = ("base", "steered", "substituted")
        recovered = Estimator(
            id="first_token_test.recovered",
            version=1,
            unit="fraction",
            higher_is_better=None,
            inputs=tuple(f"first_token_test.{name}" for name in names),
            formula=lambda base, steered, substituted: (substituted - base) / (steered - base),
            units="problems",
        )
        return (*(_accuracy("first_token_test", name) for name in names), recovered)

    def run(self, lab: StageContext) -> Findings:
        from latentbench.interventions.generation import Sampling
        from latentbench.interventions.intervention import Untouched
        from latentbench.mechanism.output_tokens import probability_shift, token_text
        from latentbench.steering.grading import solved
        from latentbench.steering.rewards import grader

        lm, steered = lab.model(), lab.subject()
        token = probability_shift(lm, steered, self.passages(lab)).top()
        if token is None:
            return Findings(warnings=("first_token_test: the steered model wrote nothing",))
        problems = self.asked(lab)
        ways = {"base": (Untouched(), ()), "steered": (steered, ()), "substituted": (Untouched(), (token,))}
        sampling, right = Sampling(self.new_tokens), grader(self.graded_by)
        found = {name: solved(lm, way, problems, sampling, right, ending) for name, (way, ending) in ways.items()}
        statistics = {**found, "problems": ones(found["base"])}
        return Findings(
            {DOMAIN: {f"first_token_test.{name}": values for name, values in statistics.items()}},
            details={"token": token_text(lm, token), **{name: float(values.mean()) for name, values in found.items()}},
            units=self.units(lab),
        )


class LayerPairs(MechanismStudy):
    """Do the vectors of two layers add up? Version 2.

    Greedy accuracy with only the vectors of layers i and j, against each alone and all together; the normalised gain is
    (acc_ij − max(acc_i, acc_j)) / (acc_all − max(acc_i, acc_j)), and undefined where all together are no better than one of
    the two: nothing is gained then of which a pair could have its share (version 1 divided one loss by another). `mean_gain` is
    their mean, `best_alone`, `best_pair` and `together` are the accuracies. The pairs are taken from the vectors of this cell;
    those of a `stack` were trained one by one.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), appendix D (with vectors trained one by one).
    """

    version: ClassVar[int] = 2

    metric: Literal["layer_pairs"] = "layer_pairs"
    graded_by: Grading = "number"
    """What makes an answer right: the last number written, or the last boxed expression."""
    pairs: PositiveInt = 36
    """Most pairs that are tried; those of the layers farthest apart first."""

    def run(self, lab: StageContext) -> Findings:
        alone, both, together = self._accuracies(lab)
        gains: list[dict[str, Json]] = [
            {
                "layers": list(pair),
                "accuracy": accuracy,
                "gain": shared_gain(accuracy, alone[pair[0]], alone[pair[1]], together),
            }
            for pair, accuracy in both.items()
        ]
        known = [gain["gain"] for gain in gains if gain["gain"] is not None]
        reason = "all together are no better than one alone" if both else "there are no two layers with vectors"
        values = (
            self._value("mean_gain", sum(known) / len(known) if known else None, len(known), reason),
            self._value("best_alone", max(alone.values()), len(alone)),
            self._value("best_pair", max(both.values(), default=None), len(both), reason),
            self._value("together", together, 1),
        )
        singles = [{"layer": layer, "accuracy": accuracy} for layer, accuracy in alone.items()]
        return Findings(values=values, details={"alone": singles, "pairs": gains, "together": together})

    def _value(self, name: str, value: float | None, n: int, reason: str | None = None) -> MetricValue:
        return MetricValue(
            id=f"layer_pairs.{name}",
            version=self.version,
            domain=DOMAIN,
            value=value,
            null_reason=reason if value is None else None,
            unit="fraction",
            higher_is_better=None,
            n=n,
        )

    def _accuracies(self, lab: StageContext) -> tuple[dict[int, float], dict[tuple[int, int], float], float]:
        from latentbench.interventions.generation import Sampling
        from latentbench.interventions.injection import VectorInjection
        from latentbench.steering.grading import solved
        from latentbench.steering.rewards import grader

        lm, made = lab.model(), injection_of(lab)
        problems = self.asked(lab)
        sampling, right = Sampling(self.new_tokens), grader(self.graded_by)

        def accuracy(*layers: int) -> float:
            chosen = VectorInjection(made.vectors.only(*layers), made.scale, made.scope, made.relative)
            return float(solved(lm, chosen, problems, sampling, right).mean())

        layers = made.vectors.layers
        pairs = sorted(combinations(layers, 2), key=lambda pair: (pair[0] - pair[1], pair))[: self.pairs]
        steps = len(layers) + len(pairs) + 1
        alone = {}
        for step, layer in enumerate(layers):
            alone[layer] = accuracy(layer)
            lab.progress(step + 1, steps)
        both = {}
        for step, pair in enumerate(pairs):
            both[pair] = accuracy(*pair)
            lab.progress(len(layers) + step + 1, steps)
        return alone, both, accuracy(*layers)


def shared_gain(both: float, first: float, second: float, together: float) -> float | None:
    """The normalised gain of a pair; None where all together gain nothing over the better one of the two."""
    best = max(first, second)
    return None if together <= best + 1e-12 else (both - best) / (together - best)
