"""What nodes of a cluster get and give that do not see this machine's disk: the depot here, and what each job may read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.distributed.node_copy import Apart
from latentbench.execute.job import Job
from latentbench.plan.stages import StageMaker
from latentbench.store.depot import RESULTS, Depot, checkpoint_name, object_name
from latentbench.store.state_cache import STATES_QUOTA


class Home:
    """This machine as nodes see it: an actor beside this process that reads and writes its folders for them."""

    def __init__(self, scratch: str, jobs: list[Job]) -> None:
        """`scratch`: folder that every node has for itself (`Apart`); `jobs`: all that nodes may ask and bring things for."""
        self._scratch = scratch
        self._stages = StageMaker(jobs[0].roots)
        names = {name for job in jobs for name in self._names(job)}
        self._actor = _beside(
            jobs[0].store, jobs[0].roots.project, jobs[0].results, project_files(jobs), frozenset({RESULTS, *names})
        )

    def order(self, job: Job) -> dict[str, Any]:
        """What a job's order says besides (`WorkOrder`)."""
        return {"job": job.to_json(), "apart": Apart(self._scratch, self._names(job)), "home": self._actor}

    def variables(self, job: Job) -> dict[str, str]:
        """Environment variables for its processes: nodes that train one SAE would each store the hidden states of all."""
        return {STATES_QUOTA: "0"} if job.spread else {}

    def _names(self, job: Job) -> tuple[str, ...]:
        """Everything the job may read or make, in an order in which it can be made."""
        found = dict[str, None]()
        for item in job.cells:
            for stage in self._stages.of(item.cell).all():
                if stage.stored:
                    found |= {object_name(*stage.ref): None, checkpoint_name(stage.key): None}
        return tuple(found)


def _beside(*arguments: Any) -> Any:
    """A depot as an actor on this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Depot).options(num_cpus=0, scheduling_strategy=here).remote(*arguments)


def project_files(jobs: Iterable[Job]) -> frozenset[str]:
    """Files of the project that specs name, alone, with their folder or by a pattern; by their paths in the project.

    Whatever a spec says anywhere that is a path here counts, since an adapter may call its files anything; results and
    store do not.
    """
    found = set[str]()
    for job in jobs:
        own = [folder.resolve() for folder in (job.store, job.results)]
        texts = chain.from_iterable(map(_texts, _said(job)))
        for path in chain.from_iterable(_files(text, job.roots) for text in set(texts)):
            if not any(path.resolve().is_relative_to(folder) for folder in own):
                found.add(os.path.relpath(path, job.roots.project))
    return frozenset(found)


def _said(job: Job) -> Iterator[Json]:
    for experiment in {id(item.cell.experiment): item.cell.experiment for item in job.cells}.values():
        yield experiment.plain()
        yield from (experiment.section_at(site).plain() for site in experiment.sites)  # with their `{layer}` filled in


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, dict | list):
        yield from chain.from_iterable(map(_texts, value.values() if isinstance(value, dict) else value))
    elif isinstance(value, str):
        yield value


def _files(text: str, roots: Roots) -> Iterator[Path]:
    """The files inside of the project that a text names."""
    try:
        named = glob.glob(str(roots.project / text), recursive=True) if 0 < len(text) < 500 and "\0" not in text else []
        for path in map(Path, map(os.path.normpath, named)):
            if path == Path(os.path.normpath(roots.project)) or not path.is_relative_to(
                os.path.normpath(roots.project)
            ):
                continue
            roots.resolve(str(path))
            yield from (one for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())
    except (InvalidInput, OSError, ValueError):
        return  # a text that is no path, or leads to where nodes have to have files of their own
