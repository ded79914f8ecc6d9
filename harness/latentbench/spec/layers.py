"""`layer: -1`: layers counted from the end, as under `steering:`.

The number of the block takes their place before anything is planned, so the same place has one key and one record however
it was written.
"""

from __future__ import annotations

from collections.abc import Iterator

from latentbench.activations.site import Site, block_number
from latentbench.errors import InvalidInput, SpecError
from latentbench.spec.cells import SpecFile
from latentbench.spec.experiment import Experiment
from latentbench.spec.explain import at
from latentbench.spec.nodes import Node, Path_
from latentbench_adapters.protocols import Roots


def with_layers(spec: SpecFile, roots: Roots) -> SpecFile:
    """The spec with every `layer` and all `layers` counted from 0. Raises SpecError at those its model does not have."""
    return spec.changed(lambda experiment, tree: _counted(experiment, tree, roots))


def places(experiment: Experiment) -> Iterator[tuple[Path_, Site]]:
    """Every place that an experiment names for its SAEs, with where it stands in the spec."""
    if experiment.layer is not None:
        yield ("layer",), experiment.layer
    yield from ((("layers", number), site) for number, site in enumerate(experiment.layers))


def missing(blocks: int) -> str:
    """What is wrong with a layer that a model of so many blocks does not have."""
    return f"the model has {blocks} decoder blocks, 0 to {blocks - 1}"


def _counted(experiment: Experiment, tree: Node, roots: Roots) -> Experiment:
    behind = [(path, site) for path, site in places(experiment) if site.index < 0]
    if not behind:
        return experiment
    blocks = _blocks(experiment, tree, behind[0][0], roots)
    wrong = [path for path, site in behind if block_number(site.index, blocks) is None]
    if wrong:
        raise SpecError([at(tree, path, missing(blocks)) for path in wrong])
    layer = experiment.layer and _from_start(experiment.layer, blocks)
    return experiment.model_copy(
        update={"layer": layer, "layers": tuple(_from_start(site, blocks) for site in experiment.layers)}
    )


def _from_start(site: Site, blocks: int) -> Site:
    return site.model_copy(update={"index": site.index % blocks}) if site.index < 0 else site


def _blocks(experiment: Experiment, tree: Node, path: Path_, roots: Roots) -> int:
    try:
        facts = experiment.model.facts(roots)
    except (InvalidInput, ValueError, OSError) as error:
        raise SpecError([at(tree, ("model",), str(error))]) from error
    if facts is None:
        message = (
            "how many blocks the model has is not known here, so none is counted from the end; write its number from 0"
        )
        raise SpecError([at(tree, path, message)])
    return facts.layers
