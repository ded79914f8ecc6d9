"""Planning a run and computing what is missing."""

from __future__ import annotations

from collections.abc import Iterable

from harness.execute.events import Report
from harness.execute.placing import Placement
from harness.plan.plan import Plan, make_plan
from harness.project import Project, load_specs
from harness.results import find_record
from harness.spec.cells import SpecFile
from harness.store.store import Store


def prepare(project: Project, given: Iterable[str]) -> Plan:
    """The plan for specs with everything from the hub pinned to what it is now. Raises SpecError or NotAvailable."""
    specs = [_pinned(spec, project) for spec in load_specs(project, given)]
    return make_plan(specs, Store(project.store), project.results, project.roots)


def compute(plan: Plan, project: Project, placement: Placement, report: Report) -> None:
    """Computes the cells of a plan that have no numbers yet; every one has a record afterwards."""
    if plan.to_run:
        placement.run(plan, project, report)


def _pinned(spec: SpecFile, project: Project) -> SpecFile:
    """The spec with branches of everything from the hub replaced by the commits they stand for now."""
    return spec.changed(lambda experiment, _: experiment.pinned(project.roots))


def unfinished(plan: Plan, project: Project) -> dict[str, str]:
    """Title and reason of every cell that has no numbers now."""
    found: dict[str, str] = {}
    for item in plan.cells:
        record = find_record(project.results, item.cell, item.key)
        if record is None:
            found[item.cell.title] = "not run"
        elif record.status != "ok":
            error = record.error
            where = f" (log: {project.results.name}/{error.log})" if error and error.log else ""
            reason = f"{error.stage}: {error.type}: {error.message}" if error else ""
            found[item.cell.title] = f"{record.status}: {reason}{where}"
    return found
