"""Which cells are computed together: those that read the same hidden states. A cell's numbers do not depend on it."""

from __future__ import annotations

import os
from collections import defaultdict

from latentbench.canonical import digest
from latentbench.plan.plan import PlannedCell

Group = tuple[PlannedCell, ...]


def groups_of(cells: tuple[PlannedCell, ...], workers: int) -> list[Group]:
    """Cells with the same model, training tokens and seed together; large groups are halved while workers are idle."""
    by_stream: dict[str, list[PlannedCell]] = defaultdict(list)
    for planned in cells:
        by_stream[_stream(planned)].append(planned)
    groups = [tuple(group) for group in by_stream.values()]
    while len(groups) < workers and max(map(len, groups), default=0) > 1:
        largest = max(groups, key=len)
        groups.remove(largest)
        # Every other cell: neighbours in a matrix cost alike, so both halves take about the same time.
        groups += [largest[::2], largest[1::2]]
    return groups


def devices_of(cells: Group) -> int:
    """The most devices on which some cell trains an SAE."""
    return max((item.cell.experiment.devices for item in cells), default=1)


def threads_of(cells: Group) -> int:
    """Processor threads of the group's process: what its cells ask for, by default half of the machine.

    Each of the processes that train an SAE on several devices has as many; by default the machine is divided among them.

    The same on every executor, because a matrix product summed by another number of threads rounds differently.
    """
    asked = [item.cell.experiment.resources.cpus for item in cells]
    stated = [cpus for cpus in asked if cpus is not None]
    return max(stated) if stated else max(1, (os.cpu_count() or 2) // max(2, devices_of(cells)))


def _stream(planned: PlannedCell) -> str:
    """What cells of one group share: the model, the devices, and the texts and seed of training or the subject studied."""
    stages = planned.stages
    tokens = next((sae.tokens for sae in stages.saes if sae.tokens), None)
    trained = [tokens.key, planned.cell.seed] if tokens else None
    subject = stages.subject if stages.subject and not trained else None
    return digest("group", [stages.model, trained, subject and subject.key, planned.cell.experiment.devices])
