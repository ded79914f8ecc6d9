"""What no single part of a spec can see: rules between the parts of an experiment, each located in the spec.

Beside the rules of the language these are: whether the SAEs under `load:` are there and belong where the spec puts them, and
whether texts and answers fit into the model. A model with learned positions has none beyond its last; one with rotary positions
goes on, but what it says there is not what its authors measured, so both are refused alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from latentbench.core.errors import InvalidInput, SpecError, SpecProblem
from latentbench.core.explain import at
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter, ModelFacts
from latentbench.core.sites import Point, Site
from latentbench.core.yaml_tree import YamlPath
from latentbench.metrics.base import statistic_problems
from latentbench.sae.options import BoostedOptions, EnsembleOptions, FineTunedOptions, Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.sources.base import SaeFacts
from latentbench.spec.cells import SpecFile
from latentbench.spec.experiment import Data, Experiment
from latentbench.spec.resolve import missing, places
from latentbench.study.context import Longest, Subject
from latentbench.study.study import Study


def too_long(experiment: Experiment, room: int, roots: Roots) -> Iterator[tuple[YamlPath, str]]:
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


def texts_of(experiment: Experiment) -> dict[YamlPath, DatasetAdapter]:
    """All texts of an experiment by their place in the spec."""
    found: dict[YamlPath, DatasetAdapter] = {("dataset", "eval", n): d for n, d in experiment.dataset.eval.items()}
    return found | {("dataset", *place): data for place, data in experiment.dataset.trained_on.items()}


def beyond(context: int, room: int) -> str:
    """What is wrong with a context that the model has no positions for."""
    return f"texts of {context} tokens are longer than the model's {room} positions; set `context: {room}` or less"


def _answers(experiment: Experiment, roots: Roots) -> Iterator[tuple[YamlPath, Longest]]:
    sections: dict[YamlPath, Study | Subject] = {("steering",): experiment.steering} if experiment.steering else {}
    sections |= {
        ("metrics", n, metric.metric): metric
        for n, metric in enumerate(experiment.metrics)
        if isinstance(metric, Study)
    }
    for path, section in sections.items():
        try:
            longest = section.longest_answer(roots)
        except (InvalidInput, ValueError, OSError):
            continue  # what cannot be read is said by the section itself
        if longest is not None:
            yield path, longest


def check_loaded(experiment: Experiment, model: ModelFacts | None, roots: Roots) -> Iterator[tuple[YamlPath, str]]:
    """What is wrong with every SAE under `load:`, also one that another SAE stands on."""
    for path, section, site, above in _loaded_places(experiment):
        try:
            section.load.identity(roots)
            facts = section.load.facts(roots)
        except (InvalidInput, ValueError, OSError) as error:
            yield path, str(error)
            continue
        if facts is not None:
            yield from ((path, message) for message in _misfits(facts, site, model, _published_name(experiment, roots)))
            yield from ((path, message) for message in _too_small(facts, above))


def _loaded_places(experiment: Experiment) -> Iterator[tuple[YamlPath, LoadedSae, Site, Variant | None]]:
    """Every loaded SAE with where the spec puts it, and the SAE that stands on it."""
    for site, path, section, above in sae_sections(experiment):
        if isinstance(section, LoadedSae):
            yield (*path, "load"), section, site, above


def sae_sections(experiment: Experiment) -> Iterator[tuple[Site, YamlPath, Variant | LoadedSae, Variant | None]]:
    """Every SAE of an experiment, those that others stand on included, with its place and what stands on it."""
    for site in experiment.sites:
        special = experiment.many_sites and site.point in experiment.sae_at
        path: YamlPath = ("sae_at", site.point) if special else ("sae",)
        yield from ((site, *found) for found in _with_bases(experiment.section_at(site), path, None))


def _with_bases(
    section: Any, path: YamlPath, above: Variant | None
) -> Iterator[tuple[YamlPath, Variant | LoadedSae, Variant | None]]:
    if isinstance(section, tuple):
        for number, item in enumerate(section):
            yield from _with_bases(item, (*path, number), above)
    elif isinstance(section, Variant | LoadedSae):
        yield path, section, above
        if isinstance(section, Variant):
            for name in type(section).model_fields:
                yield from _with_bases(getattr(section, name), (*path, name), section)


def _too_small(facts: SaeFacts, above: Variant | None) -> Iterator[str]:
    if facts.width is not None and isinstance(above, FineTunedOptions):
        try:
            above.check_base(facts.width)
        except ValueError as error:
            yield str(error)


def _published_name(experiment: Experiment, roots: Roots) -> str | None:
    try:
        return experiment.model.published_name(roots)
    except (InvalidInput, ValueError, OSError):
        return None  # the model's own place in the spec says what is wrong with it


def _misfits(facts: SaeFacts, site: Site, model: ModelFacts | None, name: str | None) -> Iterator[str]:
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


Finding = tuple[YamlPath, str]
_WRONG = (InvalidInput, ValueError, OSError)
"""What a section raises for a name that leads nowhere; OSError when the system itself refuses it."""


def check(spec: SpecFile, roots: Roots) -> list[SpecProblem]:
    """Every problem of a loaded spec's cells, files and folders it names included; empty when it can be run."""
    problems: dict[SpecProblem, None] = {}
    seen: set[int] = set()
    for cell, tree in zip(spec.cells, spec.trees, strict=True):
        if id(cell.experiment) in seen:  # the same experiment with another seed
            continue
        seen.add(id(cell.experiment))
        for path, message in _findings(cell.experiment, roots):
            problems[at(tree, path, message)] = None
    return list(problems)


def _findings(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    yield from _sections(experiment)
    yield from list(_domains(experiment)) or _data(experiment)
    yield from _devices(experiment)
    yield from _budgets(experiment)
    yield from _names(experiment, roots)
    yield from _subject(experiment, roots)
    yield from _studies(experiment, roots)
    yield from _statistics(experiment)


def _sections(experiment: Experiment) -> Iterator[Finding]:
    """Which sections go together."""
    if experiment.sae is None and experiment.subject is None:
        yield ("sae",), "is required: an SAE, or a `steering:` or `flow:` section"
    if experiment.steering and experiment.flow:
        yield ("flow",), "`steering:` and `flow:` are experiments of their own; use two specs"
    if experiment.many_sites:
        yield from _flow_places(experiment)
    elif experiment.layers or experiment.sae_at:
        yield (
            ("layers" if experiment.layers else "sae_at",),
            "several places are for `flow:` and `method: flow`; use `layer:` or add one of them",
        )
    elif experiment.sae and experiment.layer is None:
        yield ("layer",), "is required: the decoder block at which the SAE reads"
    present = {name for name in ("sae", "steering", "flow") if getattr(experiment, name) is not None}
    for number, metric in enumerate(experiment.metrics):
        for name in sorted(metric.needs - present):
            yield ("metrics", number), f"the metric {metric.metric!r} needs a `{name}:` section"
        if experiment.many_sites and not isinstance(metric, Study):
            yield ("metrics", number), f"the metric {metric.metric!r} measures one SAE; a flow spec has one per place"


def _flow_places(experiment: Experiment) -> Iterator[Finding]:
    if experiment.sae is None:
        yield ("sae",), "is required: `flow:` maps latents of SAEs to each other"
    if experiment.layer is not None:
        yield ("layer",), "a flow spec names its places under `layers:`"
    if len(set(experiment.layers)) < 2:
        yield ("layers",), "`flow:` needs at least two places, e.g. `layers: [0, 1, 2]`"
    for number, site in enumerate(experiment.layers):
        if site in experiment.layers[:number]:
            yield ("layers", number), f"{site} stands here twice"


def _subject(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    for name in ("flow", "steering"):
        section = getattr(experiment, name)
        try:
            yield from (((name,), message) for message in (section.problems_in(experiment, roots) if section else ()))
        except _WRONG as error:
            yield (name,), str(error)


def _studies(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    for number, metric in enumerate(experiment.metrics):
        if isinstance(metric, Study):
            for domain in metric.domains(experiment):
                if domain not in experiment.dataset.eval:
                    known = ", ".join(experiment.dataset.eval) or "none"
                    yield ("metrics", number), f"there is no evaluation domain {domain!r} (known: {known})"
            try:
                yield from ((("metrics", number), message) for message in metric.problems_in(experiment, roots))
            except _WRONG as error:
                yield from ((("metrics", number), said) for said in _said(error))


def _statistics(experiment: Experiment) -> Iterator[Finding]:
    """What is wrong with statistics that metrics bring along; a study measures its own."""
    for number, metric in enumerate(experiment.metrics):
        for message in () if isinstance(metric, Study) else statistic_problems(metric):
            yield ("metrics", number), f"the metric {metric.metric!r}: {message}"


def _said(error: Exception) -> list[str]:
    """What an error says, one by one where it holds the problems of a file that the experiment names."""
    return list(map(str, error.problems)) if isinstance(error, SpecError) else [str(error)]


def _data(experiment: Experiment) -> Iterator[Finding]:
    for site in experiment.sites:
        for section, texts in _trained(experiment.section_at(site), experiment.dataset.train, experiment.dataset):
            yield from _texts(section, texts, experiment)
    if experiment.shared_metrics and experiment.sae and not experiment.dataset.eval:
        yield ("dataset",), "dataset.eval is required: name at least one domain to measure on"
    for name, data in experiment.dataset.eval.items():
        if data.documents is None:
            yield ("dataset", "eval", name), "state how many `documents` to measure on"
        if data.tokens is not None:
            yield ("dataset", "eval", name, "tokens"), "evaluation counts `documents`, not tokens"


def _trained(
    section: Variant | LoadedSae, texts: DatasetAdapter | None, dataset: Data
) -> Iterator[tuple[Variant, DatasetAdapter | None]]:
    """Every SAE that is trained, those that others start from included, with its texts."""
    if isinstance(section, Variant):
        if section.reads_texts:
            yield section, texts
        for base, below in zip(section.base_sections, dataset.below(section, texts), strict=True):
            yield from _trained(base, below, dataset)


def _texts(section: Variant, texts: DatasetAdapter | None, experiment: Experiment) -> Iterator[Finding]:
    if texts is None:
        yield ("dataset",), f"the variant {section.variant!r} is trained, so dataset.train is required"
        return
    place = next(place for place, data in experiment.dataset.trained_on.items() if data is texts)
    if texts.tokens is None and (experiment.training.budget is None or place != ("train",)):
        yield ("dataset", *place), "state how many `tokens` to train on"
    elif texts.tokens is not None and texts.tokens < texts.context:
        yield ("dataset", *place, "tokens"), f"{texts.tokens} tokens are fewer than one context of {texts.context}"


def _domains(experiment: Experiment) -> Iterator[Finding]:
    """Whether the boosts of an ensemble can be trained on texts of their own."""
    dataset = experiment.dataset
    for _, path, section, _ in sae_sections(experiment):
        if not isinstance(section, EnsembleOptions) or not section.domains:
            continue
        for number, name in enumerate(section.domains):
            if name not in dataset.domains:
                known = ", ".join(dataset.domains) or "none"
                yield (*path, "domains", number), f"there are no texts {name!r} in dataset.domains (known: {known})"
        native = [boost for boost in section.boosts if isinstance(boost, BoostedOptions)]
        if dataset.base is None and any(isinstance(boost.base, Variant) for boost in native):
            yield (
                ("dataset",),
                "boosts of several domains stand on one base: say in dataset.base what that is trained on",
            )


def _devices(experiment: Experiment) -> Iterator[Finding]:
    """Whether its SAEs can be trained on several devices."""
    devices = experiment.devices
    if devices == 1:
        return
    sections = [experiment.section_at(site) for site in experiment.sites]
    trained = {name for section in sections for name in _one_device_only(section)}
    for name in sorted(trained):
        yield ("training", "devices"), f"the variant {name!r} can be trained on one device only; use devices: 1"
    for data in experiment.dataset.trained_on.values():
        if experiment.training.buffer // data.context < devices:
            rows = f"a buffer of {experiment.training.buffer} tokens holds fewer than {devices} rows of {data.context}"
            yield ("training", "devices"), f"{rows}: raise training.buffer"
    if 0 < experiment.resources.gpus < devices:
        yield ("resources", "gpus"), f"training on {devices} devices takes a whole accelerator for each"


def _one_device_only(section: Variant | LoadedSae) -> Iterator[str]:
    if isinstance(section, Variant):
        if section.reads_texts and not section.data_parallel:
            yield section.variant
        for base in section.base_sections:
            yield from _one_device_only(base)


def _budgets(experiment: Experiment) -> Iterator[Finding]:
    sae = experiment.sae
    for number, metric in enumerate(experiment.metrics):
        asked = [budget for budget in metric.measured_at() if budget is not None]
        where = ("metrics", number, metric.metric, "budgets")
        if not asked:
            continue
        if sae is None or isinstance(sae, LoadedSae):
            continue
        if not sae.budgeted:
            yield where, f"the variant {sae.variant!r} has no budget that could be changed after training"
        elif sae.max_budget is not None and max(asked) > sae.max_budget:
            yield where, f"the budget {max(asked)} exceeds the {sae.max_budget} latents the SAE was trained with"
    for first, metric in enumerate(experiment.metrics):
        if metric.label in [other.label for other in experiment.metrics[:first]]:
            yield ("metrics", first), f"the metric {metric.label!r} stands here twice"


def _names(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    """Files, folders and models that the experiment names."""
    facts: ModelFacts | None = None
    try:
        facts = experiment.model.facts(roots)
        experiment.model.identity(roots)
        yield from _layer(experiment, facts)
    except _WRONG as error:
        yield ("model",), str(error)
    for path, data in texts_of(experiment).items():
        try:
            data.identity(roots)
        except _WRONG as error:
            yield path, str(error)
    if facts:
        yield from _dimensions(experiment, facts.d_model)
        yield from too_long(experiment, facts.context, roots) if facts.context else ()
    yield from check_loaded(experiment, facts, roots)


def _dimensions(experiment: Experiment, d_model: int) -> Iterator[Finding]:
    for _, path, section, _ in sae_sections(experiment):
        if isinstance(section, Variant):
            try:
                section.check_d_in(d_model)
            except ValueError as error:
                yield path, str(error)


def _layer(experiment: Experiment, facts: ModelFacts | None) -> Iterator[Finding]:
    for path, site in places(experiment):
        if facts and site.index >= facts.layers:
            yield path, missing(facts.layers)


def same_names(specs: list[SpecFile]) -> list[SpecProblem]:
    """Problems of specs that share a name: their records would stand in one folder."""
    first: dict[str, SpecFile] = {}
    problems = []
    for spec in specs:
        other = first.setdefault(spec.origin.name, spec)
        if other is not spec:
            where = spec.tree.child("name") or spec.tree
            message = f"{other.origin.path} already has the name {spec.origin.name!r}; set another `name:`"
            problems.append(where.mark.problem(message, "name"))
    return problems
