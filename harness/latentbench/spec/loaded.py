"""What can be known of loaded SAEs before they are loaded: whether they are there and belong where the spec puts them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from latentbench.activations.site import Point, Site
from latentbench.errors import InvalidInput
from latentbench.sae.options import FineTunedOptions, Variant
from latentbench.sae.options.loaded import LoadedSae
from latentbench.spec.experiment import Experiment
from latentbench.spec.nodes import Path_
from latentbench_adapters.protocols import ModelFacts, Roots, SaeFacts

def check_loaded(experiment: Experiment, model: ModelFacts | None, roots: Roots) -> Iterator[tuple[Path_, str]]:
    """What is wrong with every SAE under `load:`, also one that another SAE stands on."""
    for path, section, site, above in _places(experiment):
        try:
            section.load.identity(roots)
            facts = section.load.facts(roots)
        except (InvalidInput, ValueError, OSError) as error:
            yield path, str(error)
            continue
        if facts is not None:
            yield from ((path, message) for message in _misfits(facts, site, model, _name(experiment, roots)))
            yield from ((path, message) for message in _too_small(facts, above))


def _places(experiment: Experiment) -> Iterator[tuple[Path_, LoadedSae, Site, Variant | None]]:
    """Every loaded SAE with where the spec puts it, and the SAE that stands on it."""
    for site, path, section, above in sae_sections(experiment):
        if isinstance(section, LoadedSae):
            yield (*path, "load"), section, site, above


def sae_sections(experiment: Experiment) -> Iterator[tuple[Site, Path_, Variant | LoadedSae, Variant | None]]:
    """Every SAE of an experiment, those that others stand on included, with its place and what stands on it."""
    for site in experiment.sites:
        special = experiment.many_sites and site.point in experiment.sae_at
        path: Path_ = ("sae_at", site.point) if special else ("sae",)
        yield from ((site, *found) for found in _with_bases(experiment.section_at(site), path, None))


def _with_bases(
    section: Any, path: Path_, above: Variant | None
) -> Iterator[tuple[Path_, Variant | LoadedSae, Variant | None]]:
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


def _name(experiment: Experiment, roots: Roots) -> str | None:
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
