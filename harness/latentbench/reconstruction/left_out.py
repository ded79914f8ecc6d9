"""What the rule for massive and named tokens leaves out: how much it is, and what the numbers are where it counts.

`left_out`, of every row with numbers of reconstruction, whether a spec asks for it or not; version 1:

* `left_out.massive` = massive tokens / (ordinary + massive + named), where special tokens are none of them;
* `left_out.named` = named tokens / the same.

`every_token`: numbers as other tools report them, over all tokens that are not special, and with all of them replaced in
substitutions: `every_token.explained_variance.centred` stands beside `explained_variance.centred`, and so on. They are those
of a spec with `massive: keep` and no `leave_out`, for the SAE that was trained under the spec's own rule. Where a few tokens
hold nearly all variance, the two explained variances say how much of the number is about those few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from latentbench.metrics.base import Display, Estimator, Metric
from latentbench.reconstruction.cross_entropy import CrossEntropy
from latentbench.reconstruction.error_metrics import MSE, ExplainedVariance
from latentbench.reconstruction.sparsity_and_cost import L0
from latentbench.statistics.arrays import Array

EVERY = "every_token."
"""Before the names of statistics that were measured over all tokens."""


def _share(part: Array, *others: Array) -> Array:
    return part / sum(others, part)


class LeftOutShare(Metric):
    """Share of tokens that are left out where the SAE reads."""

    displays: ClassVar[Mapping[str, Display]] = {
        "left_out.massive": Display("Massive left out"),
        "left_out.named": Display("Named left out"),
    }

    metric: Literal["left_out"] = "left_out"

    def numbers(self) -> tuple[Estimator, ...]:
        kinds = {"massive": "named", "named": "massive"}
        return tuple(
            Estimator(f"left_out.{kind}", 1, "fraction", None, (kind, "tokens", other), _share)
            for kind, other in kinds.items()
        )


class EveryToken(Metric):
    """Numbers over every token that is not special, beside those of the spec's own rule."""

    displays: ClassVar[Mapping[str, Display]] = {
        "every_token.explained_variance.centred": Display("EV, every token"),
        "every_token.cross_entropy.increase": Display("CE increase, every token"),
    }

    metric: Literal["every_token"] = "every_token"
    cross_entropy: bool = True
    """Whether the reconstructions of all tokens are also spliced into the model, which takes as long as for the row itself."""

    def numbers(self) -> tuple[Estimator, ...]:
        explained = ExplainedVariance(estimators=("centred", "residual_variance", "token_ratio", "uncentred"))
        metrics: Iterable[Metric] = (explained, MSE(), L0())
        metrics = (*metrics, CrossEntropy()) if self.cross_entropy else metrics
        return tuple(_over_all(number) for metric in metrics for number in metric.numbers())


def _over_all(number: Estimator) -> Estimator:
    return replace(number, id=EVERY + number.id, version=1, inputs=tuple(EVERY + name for name in number.inputs))
