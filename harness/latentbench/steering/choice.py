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

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator
from latentbench.metrics.panel import PanelData, PointData, TableData
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

    def panels(self, details: Mapping[str, Json]) -> Iterator[PanelData]:
        """Every point that was tried: what it gained and cost on selection data."""
        points, use = details.get("points", ()), details.get("strength", "strength")
        if not points:
            return
        names = [_named(point, use) for point in points]
        known = [(name, p) for name, p in zip(names, points, strict=True) if None not in (p["cost"], p["gain"])]
        head = ("point", "gain", "95 % interval from", "to", "cost (nats per token)", "on the frontier", "")
        rows = [
            (
                name,
                *(point[part] for part in ("gain", "low", "high", "cost")),
                "yes" if point["frontier"] else "no",
                said,
            )
            for number, (name, point) in enumerate(zip(names, points, strict=True))
            for said in ("chosen" if number == details["chosen"] else "" if point["allowed"] else "costs too much",)
        ]
        about = "On selection data, which are not what the numbers of this row were measured on; one point was chosen by them."
        places = {name: (point["cost"], point["gain"]) for name, point in known if point["frontier"]}
        axes = ("cost (nats per token)", f"gain ({details['rule']['number']})")
        yield PanelData("Where and how strongly", about, (PointData(places, *axes), TableData(head, rows)))

    def numbers(self) -> tuple[Estimator, ...]:
        """None: what they follow from depends on the metric of the gain."""
        return ()


def _named(point: Mapping[str, Json], use: str) -> str:
    """`layer 3, dose 0.1`."""
    parts = (("layer", point["layer"]), (use, point["strength"]))
    return ", ".join(f"{name} {value:g}" for name, value in parts if value is not None)
