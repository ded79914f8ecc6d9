"""The cell on selection data, where `auto` under `steering:` tries its points, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator

from latentbench.core.errors import SpecError, Unpinnable
from latentbench.core.paths import Roots
from latentbench.spec.experiment import Experiment
from latentbench.spec.fit import UNREADABLE, Finding
from latentbench.spec.resolve import missing
from latentbench.steering.auto import SweepOptions
from latentbench.steering.method import SteeringMethod

_WHERE = ("steering", "auto")


def swept_method(experiment: Experiment) -> SteeringMethod | None:
    """The method under `steering:` where something of it is `auto`."""
    method = experiment.steering
    return method if isinstance(method, SteeringMethod) and method.auto is not None else None


def on_selection(experiment: Experiment) -> Experiment:
    """The experiment as a sweep measures it: selection texts in place of those that are reported on, and all candidates."""
    method = swept_method(experiment)
    assert method is not None
    assert method.auto is not None
    texts = method.auto.selection(experiment.dataset.eval)
    dataset = experiment.dataset.model_copy(update={"eval": texts})
    return experiment.model_copy(update={"dataset": dataset, "steering": method.candidates()})


def selection_domains(experiment: Experiment) -> tuple[str, ...]:
    """The domains of the selection texts that are read."""
    method = swept_method(experiment)
    assert method is not None
    assert method.auto is not None
    cost = method.auto.cost_domain(experiment.dataset.eval)
    read = method.auto.study.domains(on_selection(experiment))
    return tuple(dict.fromkeys([*([cost] if cost else []), *read]))


def sweep_findings(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    """Everything that is wrong with what `auto` tries, and on which data."""
    method = swept_method(experiment)
    if method is None or method.auto is None:
        return
    yield from _texts(experiment, method.auto, roots)
    yield from _domains(experiment, method.auto)
    yield from _layers(experiment, method, method.auto, roots)
    try:
        selection = on_selection(experiment)
        yield from (((*_WHERE, "gain"), said) for said in method.auto.study.problems_in(selection, roots))
        yield from _same_problems(experiment, method.auto, roots)
    except Unpinnable:
        pass  # the spec is not wrong for that; plans name the cells that wait for it
    except UNREADABLE as error:
        said = list(map(str, error.problems)) if isinstance(error, SpecError) else [str(error)]
        yield from (((*_WHERE, "gain"), message) for message in said)


def _texts(experiment: Experiment, options: SweepOptions, roots: Roots) -> Iterator[Finding]:
    measured = experiment.dataset.eval
    if not options.selection(measured):
        yield _WHERE, "the cost is told by texts: add `dataset.eval`, or name selection texts in `texts`"
    for name, data in options.texts.items():
        where = (*_WHERE, "texts", name)
        if data.documents is None:
            yield where, "state how many `documents` to choose on"
            continue
        try:
            same = [n for n, other in measured.items() if other.identity_of_read(roots) == data.identity_of_read(roots)]
        except (Unpinnable, *UNREADABLE):
            continue  # the texts' own place in the spec says what is wrong with them
        if same:
            yield (
                where,
                f"these are the very documents of dataset.eval.{same[0]}, which is reported on; choose on others",
            )


def _domains(experiment: Experiment, options: SweepOptions) -> Iterator[Finding]:
    texts = options.selection(experiment.dataset.eval)
    known = ", ".join(texts) or "none"
    if options.cost_on is not None and options.cost_on not in texts:
        yield (*_WHERE, "cost_on"), f"there are no selection texts {options.cost_on!r} (known: {known})"
    read = options.study.domains(on_selection(experiment))
    if unknown := [name for name in read if name not in texts]:
        yield (*_WHERE, "gain"), f"there are no selection texts {unknown[0]!r} (known: {known})"
    elif options.gain_on is not None and read and options.gain_on not in read:
        yield (*_WHERE, "gain_on"), f"the gain is not measured on {options.gain_on!r} (known: {', '.join(read)})"
    elif options.gain_on is None and len(read) > 1:
        yield (*_WHERE, "gain"), f"the gain is measured on {', '.join(read)}; say with `gain_on` which of them counts"


def _layers(experiment: Experiment, method: SteeringMethod, options: SweepOptions, roots: Roots) -> Iterator[Finding]:
    try:
        facts = experiment.model.facts(roots)
    except (Unpinnable, *UNREADABLE):
        return
    if facts is None or "layers" not in method.found or isinstance(options.layers, str):
        return
    for number, layer in enumerate(options.layers):
        if not -facts.layers <= layer < facts.layers:
            yield (*_WHERE, "layers", number), missing(facts.layers)


def _same_problems(experiment: Experiment, options: SweepOptions, roots: Roots) -> Iterator[Finding]:
    """Whether a metric of the cell measures on the problems that a point is chosen on, as far as that can be told here."""
    gain = options.study
    if gain.domains(experiment):
        return  # texts are told apart by what they are
    asked = gain.identity(experiment, roots)
    for study in experiment.studies:
        if study.metric == gain.metric and asked and study.identity(experiment, roots) == asked:
            yield (
                (*_WHERE, "gain"),
                f"a point would be chosen on the very problems that {study.label} reports on; choose on others",
            )
