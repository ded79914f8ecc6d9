"""Whether what an experiment names is there and fits together: model, layers, texts, answers and loaded SAEs.

All of it is read from small files (configurations, tables of tensors), so that `validate` and `plan` stay fast: no weight is
loaded. What cannot be read on this machine is not complained about here; whoever loads it will see.

A model with learned positions has none beyond its last; one with rotary positions goes on, but what it says there is not what
its authors measured, so texts too long for either are refused alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from latentbench.core.errors import InvalidInput, Unpinnable
from latentbench.core.once import Once
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter, ModelAdapter, ModelFacts
from latentbench.core.sites import Point, Site
from latentbench.core.yaml_tree import YamlPath
from latentbench.sae.options import FineTunedOptions, Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.sources.base import SaeFacts
from latentbench.spec.experiment import Experiment
from latentbench.spec.resolve import missing, places
from latentbench.steering.auto import SweepOptions
from latentbench.steering.method import SteeringMethod
from latentbench.study.context import Longest, Subject
from latentbench.study.study import Study

Finding = tuple[YamlPath, str]
"""What is wrong, and where in the experiment it stands."""
UNREADABLE = (InvalidInput, ValueError, OSError)
"""What a part of a spec raises for a name that leads nowhere; OSError when the system itself refuses it."""


class Files:
    """What models and texts say of the files they name, each asked once: sections that are written alike are one object."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._once = Once(Unpinnable, *UNREADABLE)

    def facts(self, model: ModelAdapter) -> ModelFacts | None:
        """Raises what `ModelAdapter.facts` does."""
        return self._once("facts", (model,), lambda: model.facts(self.roots))

    def check(self, section: ModelAdapter | DatasetAdapter) -> None:
        """Raises what asking for its identity does."""
        self._once("identity", (section,), lambda: section.identity(self.roots))


def misfits(experiment: Experiment, files: Files) -> Iterator[Finding]:
    """Everything that is wrong with the files, folders and models that the experiment names."""
    facts: ModelFacts | None = None
    roots = files.roots
    try:
        facts = files.facts(experiment.model)
        files.check(experiment.model)
        yield from _layer(experiment, facts)
    except Unpinnable:
        pass  # the spec is not wrong for that; plans name the cells that wait for it
    except UNREADABLE as error:
        yield ("model",), str(error)
    for path, data in texts_of(experiment).items():
        try:
            files.check(data)
        except Unpinnable:
            continue
        except UNREADABLE as error:
            yield path, str(error)
    if facts:
        yield from _dimensions(experiment, facts.d_model)
        yield from too_long(experiment, facts.context, roots) if facts.context else ()
    yield from check_loaded(experiment, facts, roots)


def _layer(experiment: Experiment, facts: ModelFacts | None) -> Iterator[Finding]:
    for path, site in places(experiment):
        if facts and site.index >= facts.layers:
            yield path, missing(facts.layers)


def _dimensions(experiment: Experiment, d_model: int) -> Iterator[Finding]:
    for _, path, options, _ in saes_of(experiment):
        if isinstance(options, Variant):
            try:
                options.check_d_in(d_model)
            except ValueError as error:
                yield path, str(error)


def texts_of(experiment: Experiment) -> dict[YamlPath, DatasetAdapter]:
    """All texts of an experiment by their place in the spec."""
    found: dict[YamlPath, DatasetAdapter] = {("dataset", "eval", n): d for n, d in experiment.dataset.eval.items()}
    found |= {("dataset", *place): data for place, data in experiment.dataset.trained_on.items()}
    selection = options.texts if (options := _sweep(experiment)) else {}
    return found | {("steering", "auto", "texts", name): data for name, data in selection.items()}


def _sweep(experiment: Experiment) -> SweepOptions | None:
    """What `auto` under `steering:` tries; None where nothing is `auto`."""
    return experiment.steering.auto if isinstance(experiment.steering, SteeringMethod) else None


def too_long(experiment: Experiment, room: int, roots: Roots) -> Iterator[Finding]:
    """Every text of an experiment that is longer than the `room` tokens its model has positions for."""
    for path, data in texts_of(experiment).items():
        if data.context > room:
            yield (*path, "context"), beyond(data.context, room)
    for path, longest in _answers(experiment, roots):
        if longest.tokens >= room:
            yield (
                (*path, longest.field),
                f"answers of {longest.tokens} tokens leave no room for a question in the model's context of {room}; "
                f"set a smaller `{longest.field}`",
            )


def beyond(context: int, room: int) -> str:
    """What is wrong with a context that the model has no positions for."""
    return f"texts of {context} tokens are longer than the model's {room} positions; set `context: {room}` or less"


def _answers(experiment: Experiment, roots: Roots) -> Iterator[tuple[YamlPath, Longest]]:
    parts: dict[YamlPath, Study | Subject] = {("steering",): experiment.steering} if experiment.steering else {}
    parts |= {
        ("metrics", n, metric.metric): metric
        for n, metric in enumerate(experiment.metrics)
        if isinstance(metric, Study)
    }
    if options := _sweep(experiment):
        parts["steering", "auto", "gain"] = options.study
    for path, part in parts.items():
        try:
            longest = part.longest_answer(roots)
        except UNREADABLE:
            continue  # `problems_in` of the same part says so, and is always asked
        if longest is not None:
            yield path, longest


def saes_of(experiment: Experiment) -> Iterator[tuple[Site, YamlPath, Variant | LoadedSae, Variant | None]]:
    """Every SAE of an experiment, those that others stand on included: its site, where it is written, its options, and those
    of the SAE that stands on it."""
    for site in experiment.sites:
        special = experiment.many_sites and site.point in experiment.sae_at
        path: YamlPath = ("sae_at", site.point) if special else ("sae",)
        yield from ((site, *found) for found in _with_bases(experiment.section_at(site), path, None))


def _with_bases(
    value: Any, path: YamlPath, above: Variant | None
) -> Iterator[tuple[YamlPath, Variant | LoadedSae, Variant | None]]:
    # Bases are found by their type in whatever field a variant keeps them, so that each is located where it is written;
    # `base_sections` knows them too, but not under which key.
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _with_bases(item, (*path, number), above)
    elif isinstance(value, Variant | LoadedSae):
        yield path, value, above
        if isinstance(value, Variant):
            for name in type(value).model_fields:
                yield from _with_bases(getattr(value, name), (*path, name), value)


def check_loaded(experiment: Experiment, model: ModelFacts | None, roots: Roots) -> Iterator[Finding]:
    """What is wrong with every SAE under `load:`, also one that another SAE stands on."""
    name = _published_name(experiment, roots)
    for site, path, options, above in saes_of(experiment):
        if not isinstance(options, LoadedSae):
            continue
        try:
            options.load.identity(roots)
            facts = options.load.facts(roots)
        except UNREADABLE as error:
            yield (*path, "load"), str(error)
            continue
        if facts is not None:
            wrong = (*_of_another(facts, site, model, name), *_too_small(facts, above))
            yield from (((*path, "load"), message) for message in wrong)


def _published_name(experiment: Experiment, roots: Roots) -> str | None:
    try:
        return experiment.model.published_name(roots)
    except UNREADABLE:
        return None  # the model's own place in the spec says what is wrong with it


def _of_another(facts: SaeFacts, site: Site, model: ModelFacts | None, name: str | None) -> Iterator[str]:
    if facts.model is not None and name is not None and other_model(facts.model, name):
        yield f"this SAE was trained on the model {facts.model}, the spec reads {name}"
    if model is not None and facts.d_in is not None and facts.d_in != model.d_model:
        yield f"this SAE reads {facts.d_in} dimensions, the model's hidden states have {model.d_model}"
    if facts.layer is not None and _stream(facts.layer, facts.point or site.point) != _stream(site.index, site.point):
        point = f".{facts.point}" if facts.point else ""
        yield f"this SAE was trained on layer {facts.layer}{point}, the spec reads layer {site}"


def other_model(stated: str, read: str) -> bool:
    """Whether two names are clearly those of different models.

    Owners and spelling do not count, and one name may be short for the other: TransformerLens calls `openai-community/gpt2`
    `gpt2-small`, and SAEs of a base model are read on its `-it` on purpose.
    """
    one, two = sorted(map(_plain_name, (stated, read)), key=len)
    return not two.startswith(one)


def _plain_name(name: str) -> str:
    """`roneneldan/TinyStories-1Layer-21M` and `tiny-stories-1L-21M` become `tinystories1l21m`."""
    plain = re.sub(r"[^a-z0-9.]", "", name.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"(\d)layers?", r"\1l", plain)


def _stream(layer: int, point: Point) -> tuple[int, Point]:
    """The same for two names of one hidden state: what a block reads is what the block before it gave."""
    return (layer - 1, "resid_post") if point == "resid_pre" else (layer, point)


def _too_small(facts: SaeFacts, above: Variant | None) -> Iterator[str]:
    if facts.width is not None and isinstance(above, FineTunedOptions):
        try:
            above.check_base(facts.width)
        except ValueError as error:
            yield str(error)
