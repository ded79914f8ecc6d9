"""What can be said of a flow's options before anything is trained: without torch, from the spec alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from latentbench.errors import InvalidInput
from latentbench.flow.places import block_of, parse_latent, residual_sites
from latentbench.sae.options.base import Variant

if TYPE_CHECKING:
    from latentbench.flow.options import Flow
    from latentbench.spec.experiment import Experiment

Block = Annotated[int, Field(ge=0)]


def _ordered(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError(f"the first block, {span[0]}, comes after the last, {span[1]}")
    return span


Growth = Literal["constant", "linear", "exponential"]
"""How the strength of a latent depends on its layer along a path."""
Latent = Annotated[str, Field(pattern=r"^\d+(\.resid_(pre|post))?:\d+$")]
"""A latent of the residual stream, `3:17` or `3.resid_post:17`."""
Span = Annotated[tuple[Block, Block], AfterValidator(_ordered)]
"""First and last decoder block."""


def unfoldable(experiment: Experiment) -> Iterator[str]:
    """Every kind of SAE of the experiment whose thresholds cannot be folded, with where it stands.

    Loaded ones tell only when they are read.
    """
    said: dict[str, str] = {}
    for site in experiment.sites:
        section = experiment.section_at(site)
        if isinstance(section, Variant) and not section.foldable:
            said.setdefault(section.variant, str(site))
    for variant, place in said.items():
        yield f"the {variant} SAE at {place} has no positive thresholds to fold; use mean activations (`activation`) instead"


def unread(flow: Flow | None, experiment: Experiment) -> Iterator[str]:
    """Why there are no texts to take activations on, where there are none."""
    try:
        if flow is not None:
            flow.source(experiment)
    except InvalidInput as error:
        yield str(error)


def unknown_latents(experiment: Experiment, latents: Iterable[str]) -> Iterator[str]:
    """Seeds that are no latents of the experiment's residual SAEs, or to which nothing can be added."""
    residual = residual_sites(experiment.sites)
    for text in latents:
        site, number = parse_latent(text)
        width = getattr(experiment.section_at(site), "width", None) if site in residual else None
        if site not in residual:
            yield f"{text}: there is no SAE at {site}; there are {', '.join(map(str, residual)) or 'none'}"
        elif block_of(site) < 0:
            yield f"{text}: nothing can be added before the first block; take a later latent of its path"
        elif width is not None and number >= width:
            yield f"{text}: the SAE at {site} has the latents 0 to {width - 1}"


def unreached_span(experiment: Experiment, span: tuple[int, int] | None) -> Iterator[str]:
    """A span without a residual SAE."""
    blocks = [block_of(site) for site in residual_sites(experiment.sites)]
    if span is not None and not any(span[0] <= block <= span[1] for block in blocks):
        yield f"span {span[0]} to {span[1]}: no SAE reads the residual stream behind these blocks, but behind {blocks}"
