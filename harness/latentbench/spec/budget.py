"""`training: {budget: {flops_of: …}}`: as many training tokens as the operations of another spec's run buy.

KronSAE (arXiv 2505.22255, §4) compares at equal FLOPs: a cheaper SAE is trained on more tokens. The number of tokens is
worked out before anything is planned and stands in the resolved experiment like any other value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latentbench.errors import InvalidInput, SpecError
from latentbench.sae.cost import tokens_at_equal_cost, variant_cost
from latentbench.sae.options import Variant
from latentbench.spec.cells import SpecFile
from latentbench.spec.experiment import Experiment
from latentbench.spec.explain import at
from latentbench.spec.nodes import Node
from latentbench_adapters.protocols import Roots

Load = Callable[[Path], SpecFile]

_WHERE = ("training", "budget", "flops_of")


def with_budgets(spec: SpecFile, root: Path, roots: Roots, load: Load) -> SpecFile:
    """The spec with `dataset.train.tokens` filled in where a budget asks for it. Raises SpecError at the budget."""

    def filled(experiment: Experiment, tree: Node) -> Experiment:
        try:
            return _budgeted(experiment, root / spec.origin.path, roots, load)
        except (InvalidInput, ValueError) as error:
            raise SpecError([at(tree, _WHERE, str(error))]) from error

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
        variant_cost(options, _d_model(of, roots))
        for options, of in ((reference.sae, reference), (experiment.sae, experiment))
    ]
    tokens = max(data.context, tokens_at_equal_cost(costs[0], other.tokens, costs[1]))
    train = data.model_copy(update={"tokens": tokens})
    return experiment.model_copy(update={"dataset": experiment.dataset.model_copy(update={"train": train})})


def _d_model(experiment: Experiment, roots: Roots) -> int:
    """Dimensions of the hidden states; each spec's own, for the other may read another model."""
    facts = experiment.model.facts(roots)
    if facts is None:
        raise InvalidInput("the size of the model must be known here to count operations; its config is not cached")
    return facts.d_model


def _reference(spec: SpecFile, label: str | None) -> Experiment:
    found = [cell.experiment for cell in spec.cells if label in (None, cell.label)]
    if not found or (label is None and len({cell.label for cell in spec.cells}) > 1):
        labels = ", ".join(dict.fromkeys(cell.label for cell in spec.cells))
        raise InvalidInput(f"{spec.origin.path} has several experiments; say which with `label`: {labels}")
    return found[0]
