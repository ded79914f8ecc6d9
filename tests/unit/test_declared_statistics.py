"""Metrics that bring statistics along: names, budgets, and the keys of those that bring none, which stay as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from latentbench.metrics.base import BudgetedMetric, Estimator, Metric, Statistic, declared, ratio, statistic_problems
from latentbench.plan.plan import make_plan
from latentbench.plan.stages import CellStages, stages_of
from latentbench.reconstruction.sparsity_and_cost import L0
from latentbench.spec.cells import Cell
from latentbench.spec.checks import check
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from tests.support.project import Workbench

WORSE = Statistic("mine.worse", "mine:worse")
LENGTH = Statistic("mine.length", "mine:length", shared=True)


class Mine(BudgetedMetric):
    metric: Literal["mine"] = "mine"
    version_of_worse: int = 1

    def numbers(self) -> tuple[Estimator, ...]:
        worse = replace(WORSE, version=self.version_of_worse)
        return (
            Estimator("mine.worse", 1, "fraction", False, ("mine.worse", "tokens"), ratio, statistics=(worse,)),
            Estimator("mine.length", 1, "tokens", None, ("mine.length", "tokens"), ratio, statistics=(LENGTH,)),
        )


class Misnamed(Metric):
    metric: Literal["mine"] = "mine"
    brings: tuple[Any, ...] = ()

    def numbers(self) -> tuple[Estimator, ...]:
        return (Estimator("mine", 1, "x", None, ("tokens", "tokens"), ratio, statistics=self.brings),)


def test_shared_statistics_carry_no_budget() -> None:
    worse, length = Mine().numbers()
    assert (worse.names(8), worse.names(None)) == (("mine.worse@8", "tokens"), ("mine.worse", "tokens"))
    assert length.names(8) == ("mine.length", "tokens")
    assert (worse.shared, length.shared) == (False, True)


def test_a_statistic_is_measured_where_a_metric_wants_it() -> None:
    metrics = [Mine(budgets=(8,)), L0(budgets=(4, 8))]
    assert [s.name for s in declared(metrics, None)] == ["mine.length", "mine.worse"]
    assert declared(metrics, 8) == (WORSE,)
    assert declared(metrics, 4) == ()


@pytest.mark.parametrize(
    ("brings", "says"),
    [
        ([replace(WORSE, name="worse")], ["its statistic 'worse' must be called `mine.…`, without '@'"]),
        (
            [replace(WORSE, name="squared_error")],
            ["its statistic 'squared_error' must be called `mine.…`, without '@'"],
        ),
        ([replace(WORSE, name="mine.w@8")], ["its statistic 'mine.w@8' must be called `mine.…`, without '@'"]),
        ([WORSE, replace(WORSE, version=2)], ["two of its statistics are called 'mine.worse'"]),
        ([WORSE, WORSE, LENGTH], []),
    ],
    ids=["bare", "built-in", "budget", "twice", "right"],
)
def test_names_that_could_be_confused_are_problems_of_the_spec(
    brings: list[Statistic], says: list[str], bench: Workbench
) -> None:
    metric = Misnamed(brings=tuple(brings))
    assert list(statistic_problems(metric)) == says
    bench.spec()
    (spec,) = load_specs(bench.project, [])
    (cell,) = spec.cells
    own = replace(cell, experiment=cell.experiment.model_copy(update={"metrics": (L0(), metric)}))
    found = [problem.message for problem in check(replace(spec, cells=[own]), bench.project.roots)]
    assert found == [f"the metric 'mine': {message}" for message in says]


def stages(bench: Workbench, cell: Cell, *metrics: Metric) -> CellStages:
    asked = replace(cell, experiment=cell.experiment.model_copy(update={"metrics": metrics}))
    return stages_of(asked, bench.project.roots)


def test_keys_change_for_what_brings_a_statistic_and_for_nothing_else(bench: Workbench) -> None:
    bench.spec()
    project = bench.project
    (planned,) = make_plan(load_specs(project, []), Store(project.store), project.results, project.roots).cells
    plain = stages(bench, planned.cell, L0(budgets=(2,))).domains["lab"]
    own, raised = (
        stages(bench, planned.cell, L0(budgets=(2,)), Mine(version_of_worse=version)).domains["lab"]
        for version in (1, 2)
    )
    assert {budget: stage.payload for budget, stage in plain.measurements.items()} == {
        budget: {"budget": budget, "splice": False, "version": 2} for budget in (None, 2)
    }
    assert (plain.tokens.key, plain.baseline) == (own.tokens.key, own.baseline)
    assert own.measurements[2].key == plain.measurements[2].key
    assert own.measurements[None].payload["statistics"] == {"mine.length": 1, "mine.worse": 1}
    assert len({domain.measurements[None].key for domain in (plain, own, raised)}) == 3
