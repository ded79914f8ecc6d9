"""Everything that is wrong with a loaded spec, each thing at its place: the rules that no single part of it can see.

A part validates itself when it is read. Here are the rules between the parts of an experiment, what subjects and studies say
of the experiment that they stand in, and (`latentbench.spec.fit`) whether what it names is there and fits together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from latentbench.core.errors import SpecError, SpecProblem, Unpinnable
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.sites import PAIR, written_at
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.core.validation_errors import problem_at
from latentbench.metrics.base import statistic_problems
from latentbench.reconstruction.left_out import EveryToken
from latentbench.sae.options import BoostedOptions, EnsembleOptions, Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.spec.cells import SpecFile
from latentbench.spec.experiment import Data, Experiment
from latentbench.spec.fit import UNREADABLE, Files, Finding, misfits, saes_of
from latentbench.spec.selection import sweep_findings
from latentbench.study.study import Study

SUBJECTS = ("steering", "concepts", "flow")
"""Sections that make what is studied, of which a spec has one at most."""


def check(spec: SpecFile, roots: Roots) -> list[SpecProblem]:
    """Every problem of a loaded spec's cells, files and folders it names included; empty when it can be run."""
    problems: dict[SpecProblem, None] = {}
    seen: set[int] = set()
    files = Files(roots)
    for cell, tree in zip(spec.cells, spec.trees, strict=True):
        if id(cell.experiment) in seen:  # the same experiment with another seed
            continue
        seen.add(id(cell.experiment))
        for path, message in _findings(cell.experiment, files):
            problems[problem_at(tree, path, message)] = None
    return list(problems)


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


def _findings(experiment: Experiment, files: Files) -> Iterator[Finding]:
    roots = files.roots
    yield from _sections(experiment)
    # Boosts without texts of their own would be complained about once more, as SAEs without any texts.
    yield from list(_domains(experiment)) or _data(experiment)
    yield from _devices(experiment)
    yield from _pairs(experiment)
    yield from _budgets(experiment)
    yield from _repeated(experiment)
    yield from misfits(experiment, files)
    yield from _subject(experiment, roots)
    yield from sweep_findings(experiment, roots)
    yield from _studies(experiment, roots)
    yield from _every_token(experiment)
    yield from _statistics(experiment)


def _sections(experiment: Experiment) -> Iterator[Finding]:
    """Which parts of an experiment go together, and which are missing."""
    if experiment.sae is None and experiment.subject is None:
        yield ("sae",), "is required: an SAE, or a `steering:`, `concepts:` or `flow:` section"
    subjects = [name for name in SUBJECTS if getattr(experiment, name) is not None]
    for name in subjects[1:]:
        yield (name,), f"`{subjects[0]}:` and `{name}:` are experiments of their own; use two specs"
    if experiment.many_sites:
        yield from _flow_places(experiment)
    elif experiment.layers or experiment.sae_at:
        yield (
            ("layers" if experiment.layers else "sae_at",),
            "several places are for `flow:` and `method: flow`; use `layer:` or add one of them",
        )
    elif experiment.sae and experiment.layer is None:
        yield ("layer",), "is required: the decoder block at which the SAE reads"
    present = {*subjects, *(["sae"] if experiment.sae is not None else [])}
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


def _data(experiment: Experiment) -> Iterator[Finding]:
    for site in experiment.sites:
        for options, texts in _trained(experiment.section_at(site), experiment.dataset.train, experiment.dataset):
            yield from _texts(options, texts, experiment)
    if experiment.shared_metrics and experiment.sae and not experiment.dataset.eval:
        yield ("dataset",), "dataset.eval is required: name at least one domain to measure on"
    for name, data in experiment.dataset.eval.items():
        if data.documents is None:
            yield ("dataset", "eval", name), "state how many `documents` to measure on"
        if data.tokens is not None:
            yield ("dataset", "eval", name, "tokens"), "evaluation counts `documents`, not tokens"
        if data.packing != "separated":
            yield ("dataset", "eval", name, "packing"), "evaluation has one document a row; `packing` is for training"
        yield from _splits(name, data, experiment.dataset)


def _splits(name: str, data: DatasetAdapter, dataset: Data) -> Iterator[Finding]:
    """Whether the two sides of splits by text are cut at the same place."""
    for place, trained in dataset.trained_on.items():
        pairs = ((one, other) for one in trained.splits for other in data.splits if one.crosses(other))
        for one, other in islice(pairs, 1):
            shares = " and ".join(f"{split.part} {split.eval_share:g}" for split in (one, other))
            message = f"shares texts with dataset.{'.'.join(place)}: state the same `eval_share` in both, not {shares}"
            yield ("dataset", "eval", name), message


def _trained(
    options: Variant | LoadedSae, texts: DatasetAdapter | None, dataset: Data
) -> Iterator[tuple[Variant, DatasetAdapter | None]]:
    """Every SAE that is trained, those that others start from included, with its texts."""
    if isinstance(options, Variant):
        if options.reads_texts:
            yield options, texts
        for base, below in zip(options.base_sections, dataset.below(options, texts), strict=True):
            yield from _trained(base, below, dataset)


def _texts(options: Variant, texts: DatasetAdapter | None, experiment: Experiment) -> Iterator[Finding]:
    if texts is None:
        yield ("dataset",), f"the variant {options.variant!r} is trained, so dataset.train is required"
        return
    place = next(place for place, data in experiment.dataset.trained_on.items() if data is texts)
    if texts.tokens is None and (experiment.training.budget is None or place != ("train",)):
        yield ("dataset", *place), "state how many `tokens` to train on"
    elif texts.tokens is not None and texts.tokens < texts.context:
        yield ("dataset", *place, "tokens"), f"{texts.tokens} tokens are fewer than one context of {texts.context}"


def _domains(experiment: Experiment) -> Iterator[Finding]:
    """Whether the boosts of an ensemble can be trained on texts of their own."""
    dataset = experiment.dataset
    for _, path, options, _ in saes_of(experiment):
        if not isinstance(options, EnsembleOptions) or not options.domains:
            continue
        for number, name in enumerate(options.domains):
            if name not in dataset.domains:
                known = ", ".join(dataset.domains) or "none"
                yield (*path, "domains", number), f"there are no texts {name!r} in dataset.domains (known: {known})"
        native = [boost for boost in options.boosts if isinstance(boost, BoostedOptions)]
        if dataset.base is None and any(isinstance(boost.base, Variant) for boost in native):
            yield (
                ("dataset",),
                "boosts of several domains stand on one base: say in dataset.base what that is trained on",
            )


def _devices(experiment: Experiment) -> Iterator[Finding]:
    """Whether the SAEs of an experiment can be trained on as many devices as it says."""
    devices = experiment.devices
    if devices == 1:
        return
    alone = {name for site in experiment.sites for name in _one_device_only(experiment.section_at(site))}
    for name in sorted(alone):
        yield ("training", "devices"), f"the variant {name!r} can be trained on one device only; use devices: 1"
    for data in experiment.dataset.trained_on.values():
        # Every device runs the model on rows of its own of each block, and a block is one buffer of tokens.
        if experiment.training.buffer // data.context < devices:
            rows = f"a buffer of {experiment.training.buffer} tokens holds fewer than {devices} rows of {data.context}"
            yield ("training", "devices"), f"{rows}: raise training.buffer"
    if 0 < experiment.resources.gpus < devices:
        yield ("resources", "gpus"), f"training on {devices} devices takes a whole accelerator for each"


def _one_device_only(options: Variant | LoadedSae) -> Iterator[str]:
    if isinstance(options, Variant):
        if options.reads_texts and not options.data_parallel:
            yield options.variant
        for base in options.base_sections:
            yield from _one_device_only(base)


def _pairs(experiment: Experiment) -> Iterator[Finding]:
    """Whether transcoders, and they alone, stand where both sides of an MLP are read, and are asked for what they have."""
    for number, site in enumerate(experiment.layers):
        if site.point == PAIR:
            yield (
                ("layers", number),
                f"{site} is for transcoders, which no map between places takes: use {written_at(site)}",
            )
    if experiment.many_sites:
        return
    for site, path, options, _ in saes_of(experiment):
        if isinstance(options, LoadedSae):
            continue  # what a loaded SAE is its files say: `check_loaded`
        if options.paired and site.point != PAIR:
            yield path, f"the variant {options.variant!r} reads an MLP: write `layer: {site.index}.{PAIR}`"
        elif site.point == PAIR and not options.paired:
            yield path, f"the variant {options.variant!r} reads one hidden state: write `layer: {written_at(site)}`"
    if any(site.point == PAIR for site in experiment.sites):
        if experiment.subject is not None:
            yield ("layer",), "a transcoder is no SAE that steering could use"
        for number, metric in enumerate(experiment.metrics):
            if isinstance(metric, Study):
                yield (
                    ("metrics", number),
                    f"the metric {metric.metric!r} reads SAEs; a transcoder has none of its numbers",
                )


def _budgets(experiment: Experiment) -> Iterator[Finding]:
    sae = experiment.sae
    for number, metric in enumerate(experiment.metrics):
        asked = [budget for budget in metric.measured_at() if budget is not None]
        where = ("metrics", number, metric.metric, "budgets")
        if not asked or sae is None or isinstance(sae, LoadedSae):
            continue  # what a loaded SAE can do is known when it is loaded
        if not sae.budgeted:
            yield where, f"the variant {sae.variant!r} has no budget that could be changed after training"
        elif sae.latents is not None and max(asked) > sae.latents:
            # More than it was trained with is measured and marked; more than there are is not.
            yield where, f"the budget {max(asked)} exceeds the {sae.latents} latents that the SAE has"


def _repeated(experiment: Experiment) -> Iterator[Finding]:
    # Studies are stored and numbers are found by the metric's label, so a second one would take the first one's place.
    for first, metric in enumerate(experiment.metrics):
        if metric.label in [other.label for other in experiment.metrics[:first]]:
            yield ("metrics", first), f"the metric {metric.label!r} stands here twice"


def _subject(experiment: Experiment, roots: Roots) -> Iterator[Finding]:
    for name in reversed(SUBJECTS):
        subject = getattr(experiment, name)
        try:
            yield from (((name,), message) for message in (subject.problems_in(experiment, roots) if subject else ()))
        except Unpinnable:
            continue  # the spec is not wrong for that; plans name the cells that wait for it
        except UNREADABLE as error:
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
            except Unpinnable:
                continue
            except UNREADABLE as error:
                yield from ((("metrics", number), said) for said in _said(error))


def _every_token(experiment: Experiment) -> Iterator[Finding]:
    """A number about every token says nothing new where every token counts."""
    for number, metric in enumerate(experiment.metrics):
        if isinstance(metric, EveryToken) and experiment.token_rule == EVERY_TOKEN:
            yield ("metrics", number), "`massive: keep` counts every token already: drop this metric"


def _statistics(experiment: Experiment) -> Iterator[Finding]:
    """What is wrong with statistics that metrics bring along; a study measures its own."""
    for number, metric in enumerate(experiment.metrics):
        for message in () if isinstance(metric, Study) else statistic_problems(metric):
            yield ("metrics", number), f"the metric {metric.metric!r}: {message}"


def _said(error: Exception) -> list[str]:
    """What an error says, one by one where it holds the problems of a file that the experiment names."""
    return list(map(str, error.problems)) if isinstance(error, SpecError) else [str(error)]
