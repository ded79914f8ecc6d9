"""`steering_dose`: how far steering moves hidden states, against how long they are.

On the documents of each evaluation domain, at every ordinary token (neither special nor named nor, where it is changed, massive)
and every place that is changed, h the state as it arrives there and Δ what is done to it:

==========  ==================================================  ==========
number      formula                                             unit
==========  ==================================================  ==========
`dose`      mean of ‖Δ‖ / ‖h‖ over tokens that are changed      ratio
`length`    mean of ‖Δ‖ over tokens that are changed            norm
`changed`   changed tokens / all ordinary ones                  fraction
==========  ==================================================  ==========

A scale says nothing by itself: it multiplies a vector that may have any length. Equal doses of two methods are equally large
changes. As it arrives: behind other changes h is not that of the plain model, and in half precision Δ is what rounding leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, Role, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "steering_dose"
"""The metric's name, with which the names of its statistics begin."""


class SteeringDose(Study):
    """Size of the change that steering makes, ‖Δ‖ / ‖h‖ over ordinary tokens, and the share of tokens that it changes.

    A text has no prompt: with the scopes `generated` and `first` its first token counts as the prompt, and with `prompt` nothing
    is changed. Methods that change no hidden state (`none`, `prefix`, `lora`) have no dose.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.steering.dose_study:measure_dose"
    displays: ClassVar[Mapping[str, Display]] = {
        "steering_dose.dose": Display("‖Δ‖/‖h‖", 105, role=Role("dose", "‖Δ‖/‖h‖"))
    }

    metric: Literal["steering_dose"] = "steering_dose"

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        return {"token_rule": experiment.token_rule.plain()}

    def numbers(self) -> tuple[Estimator, ...]:
        names = (("dose", "ratio", "ratio", "changed"), ("length", "norm", "length", "changed"))
        shared = (*names, ("changed", "fraction", "changed", "tokens"))
        return tuple(
            Estimator(f"{NAME}.{name}", 1, unit, None, (f"{NAME}.{part}", f"{NAME}.{of}"), ratio)
            for name, unit, part, of in shared
        )
