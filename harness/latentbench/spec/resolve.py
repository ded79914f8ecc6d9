"""What is worked out before anything is planned, so that the resolved experiment states it like any other value.

`layer: -1`, layers counted from the end as under `steering:`: the number of the block takes their place, so the same place has one key
and one record however it was written.

`training: {budget: {flops_of: …}}`: as many training tokens as the operations of another spec's run buy. KronSAE (arXiv
2505.22255, §4) compares at equal FLOPs: a cheaper SAE is trained on more tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from latentbench.core.errors import InvalidInput, SpecError
from latentbench.core.paths import Roots
from latentbench.core.sites import Site, block_number
from latentbench.core.validation_errors import problem_at
from latentbench.core.yaml_tree import YamlNode, YamlPath
from latentbench.sae.cost import tokens_at_equal_cost, variant_cost
from latentbench.sae.options import Variant
from latentbench.spec.cells import SpecFile
from latentbench.spec.experiment import Experiment


def with_layers(spec: SpecFile, roots: Roots) -> SpecFile:
    """The spec with every `layer` and all `layers` counted from 0. Raises SpecError at those its model does not have."""
    return spec.changed(lambda experiment, tree: _counted(experiment, tree, roots))


def places(experiment: Experiment) -> Iterator[tuple[YamlPath, Site]]:
    """Every place that an experiment names for its SAEs, with where it stands in the spec."""
    if experiment.layer is not None:
        yield ("layer",), experiment.layer
    yield from ((("layers", number), site) for number, site in enumerate(experiment.layers))


def missing(blocks: int) -> str:
    """What is wrong with a layer that a model of so many blocks does not have."""
    return f"the model has {blocks} decoder blocks, 0 to {blocks - 1}"


def _counted(experiment: Experiment, tree: YamlNode, roots: Roots) -> Experiment:
    behind = [(path, site) for path, site in places(experiment) if site.index < 0]
    if not behind:
        return experiment  # without asking for the model, which need not be on this machine to plan its cells
    blocks = _blocks(experiment, tree, behind[0][0], roots)
    wrong = [path for path, site in behind if block_number(site.index, blocks) is None]
    if wrong:
        raise SpecError([problem_at(tree, path, missing(blocks)) for path in wrong])
    layer = experiment.layer and _from_start(experiment.layer, blocks)
    return experiment.model_copy(
        update={"layer": layer, "layers": tuple(_from_start(site, blocks) for site in experiment.layers)}
    )


def _from_start(site: Site, blocks: int) -> Site:
    return site.model_copy(update={"index": site.index % blocks}) if site.index < 0 else site


def _blocks(experiment: Experiment, tree: YamlNode, path: YamlPath, roots: Roots) -> int:
    try:
        facts = experiment.model.facts(roots)
    except (InvalidInput, ValueError, OSError) as error:
        raise SpecError([problem_at(tree, ("model",), str(error))]) from error
    if facts is None:
        message = (
            "how many blocks the model has is not known here, so none is counted from the end; write its number from 0"
        )
        raise SpecError([problem_at(tree, path, message)])
    return facts.layers


Load = Callable[[Path], SpecFile]

_WHERE = ("training", "budget", "flops_of")


def with_budgets(spec: SpecFile, root: Path, roots: Roots, load: Load) -> SpecFile:
    """The spec with `dataset.train.tokens` filled in where a budget asks for it. Raises SpecError at the budget."""

    def filled(experiment: Experiment, tree: YamlNode) -> Experiment:
        try:
            return _budgeted(experiment, root / spec.origin.path, roots, load)
        except (InvalidInput, ValueError) as error:
            raise SpecError([problem_at(tree, _WHERE, str(error))]) from error

    return spec.changed(filled)


def _budgeted(experiment: Experiment, path: Path, roots: Roots, load: Load) -> Experiment:
    budget = experiment.training.budget
    if budget is None:
        return experiment
    other_path = (path.parent / budget.flops_of).resolve()
    if not other_path.is_relative_to(roots.project.resolve()):
        raise InvalidInput(f"{budget.flops_of!r} leaves the project")
    reference = _reference(load(other_path), budget.label)
    data, other = experiment.dataset.train, reference.dataset.train
    if not (
        isinstance(experiment.sae, Variant) and isinstance(reference.sae, Variant) and data and other and other.tokens
    ):
        raise InvalidInput("a budget needs an SAE that is trained, here and in the spec it refers to")
    costs = [
        variant_cost(options, _d_model(of, budget.d_model if of.model == experiment.model else None, roots))
        for options, of in ((reference.sae, reference), (experiment.sae, experiment))
    ]
    tokens = max(data.context, tokens_at_equal_cost(costs[0], other.tokens, costs[1]))
    train = data.model_copy(update={"tokens": tokens})
    return experiment.model_copy(update={"dataset": experiment.dataset.model_copy(update={"train": train})})


def _d_model(experiment: Experiment, stated: int | None, roots: Roots) -> int:
    """Dimensions of the hidden states; each spec's own, for the other may read another model."""
    facts = experiment.model.facts(roots)
    if facts is None and stated is None:
        raise InvalidInput(
            "the size of the model must be known here to count operations, and its config is not cached; state it as "
            "`d_model` beside `flops_of`"
        )
    if facts is not None and stated is not None and facts.d_model != stated:
        raise InvalidInput(f"the model's hidden states have {facts.d_model} dimensions, not `d_model: {stated}`")
    known = facts.d_model if facts else stated
    assert known is not None
    return known


def _reference(spec: SpecFile, label: str | None) -> Experiment:
    found = [cell.experiment for cell in spec.cells if label in (None, cell.label)]
    if not found or (label is None and len({cell.label for cell in spec.cells}) > 1):
        labels = ", ".join(dict.fromkeys(cell.label for cell in spec.cells))
        raise InvalidInput(f"{spec.origin.path} has several experiments; say which with `label`: {labels}")
    return found[0]
