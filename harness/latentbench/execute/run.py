"""Planning a run and computing what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from latentbench.errors import InvalidInput, Unpinnable
from latentbench.execute.events import Report
from latentbench.execute.placing import Placement
from latentbench.plan.plan import Plan, make_plan
from latentbench.project import Project, load_specs
from latentbench.results import find_record
from latentbench.spec.cells import Cell, SpecFile
from latentbench.spec.experiment import Experiment
from latentbench.spec.nodes import Node
from latentbench.store.store import Store


def prepare(project: Project, given: Iterable[str]) -> Plan:
    """The plan for specs with everything from the hub pinned to what it is now.

    Cells of which that is not known are left out and named in the plan: they cost no others. Raises Unpinnable when none
    is left, SpecError for specs that are wrong.
    """
    unpinned: dict[str, str] = {}
    specs = [_pinned(spec, project, unpinned) for spec in load_specs(project, given)]
    plan = make_plan(specs, Store(project.store), project.results, project.roots)
    if unpinned and not plan.cells:
        raise Unpinnable("\n".join(dict.fromkeys(unpinned.values())))
    return replace(plan, unpinned=unpinned)


def compute(plan: Plan, project: Project, placement: Placement, report: Report) -> None:
    """Computes the cells of a plan that have no numbers yet; every one has a record afterwards."""
    if plan.to_run:
        placement.run(plan, project, report)


def _pinned(spec: SpecFile, project: Project, unpinned: dict[str, str]) -> SpecFile:
    """The spec with branches of everything from the hub replaced by the commits they stand for now.

    Without the cells whose commits nobody knows: their titles are added to `unpinned`, with the reason.
    """
    done: dict[int, Experiment | Unpinnable] = {}  # cells that differ only in their seed share an experiment
    kept: list[tuple[Cell, Node]] = []
    for cell, tree in zip(spec.cells, spec.trees, strict=True):
        if id(cell.experiment) not in done:
            done[id(cell.experiment)] = _of_now(cell.experiment, project)
        now = done[id(cell.experiment)]
        if isinstance(now, Unpinnable):
            unpinned[cell.title] = str(now)
        else:
            kept.append((replace(cell, experiment=now), tree))
    return replace(spec, cells=tuple(cell for cell, _ in kept), trees=tuple(tree for _, tree in kept))


def _of_now(experiment: Experiment, project: Project) -> Experiment | Unpinnable:
    try:
        return experiment.pinned(project.roots)
    except Unpinnable as error:
        return error
    except (InvalidInput, ValueError, OSError):
        return experiment  # a name that leads nowhere: the plan says so, with its place in the spec


def unfinished(plan: Plan, project: Project) -> dict[str, str]:
    """Title and reason of every cell that has no numbers now."""
    found = dict(plan.unpinned)
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
