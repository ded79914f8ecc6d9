"""`steering_choice`: which layer and strength `auto` has chosen, and what became of its gain on data that had no part in that.

================  =====================================================================================  ======
number            what                                                                                   better
================  =====================================================================================  ======
`layer`           the chosen decoder block                                                               -
`dose`, `scale`   the chosen dose or scale                                                               -
`points`          points that were tried: the more, the luckier the best of them                         -
`selection_gain`  gain of the chosen point on selection data                                             -
`selection_cost`  its cost there, nats per token                                                         -
`test_gain`       the same gain on what the cell's own metric measures on                                higher
`optimism`        selection gain − test gain: what choosing the best of many has made of chance          -
`frontier_gain`   gain on selection data of a point on the frontier, with its layer and strength         -
`frontier_cost`   cost of such a point                                                                   -
================  =====================================================================================  ======

A gain is negative where it is a loss, also of a number that should fall. Problems and documents of selection and test are
different, so the interval of the optimism is that of a difference of two independent samples
(harness/latentbench/statistics/unpaired.py). Rows whose `steering:` has something `auto` report all this without being asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from latentbench.metrics.base import Display
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "steering_choice"


class SteeringChoice(Study):
    """What `auto` has chosen under `steering:`, its gain on selection data and on test data, and the frontier it was chosen from."""

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.steering.choice_study:tell_choice"
    displays: ClassVar[Mapping[str, Display]] = {
        f"{NAME}.layer": Display("Layer chosen"),
        f"{NAME}.dose": Display("Dose chosen"),
        f"{NAME}.scale": Display("Scale chosen"),
        f"{NAME}.selection_gain": Display("Gain where chosen"),
        f"{NAME}.test_gain": Display("Gain of the choice"),
        f"{NAME}.optimism": Display("Optimism of choosing"),
    }

    metric: Literal["steering_choice"] = "steering_choice"

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def after(self, experiment: ExperimentView) -> tuple[Study, ...]:
        """The cell's own metrics that measure the gain, on test data."""
        auto = getattr(experiment.steering, "auto", None)
        return tuple(study for study in experiment.studies if auto is not None and study.metric == auto.gain.metric)

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if getattr(experiment.steering, "auto", None) is not None:
            return ()
        return ("steering_choice tells what `auto` has chosen, and nothing under `steering:` is `auto`",)

    def numbers(self) -> tuple[Any, ...]:
        """None: what they follow from depends on the metric of the gain."""
        return ()
