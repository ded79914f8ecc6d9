"""Which sites neighbour which: the residual stream layer by layer, and the MLPs and attention that write into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site

Part = Literal["residual", "mlp", "attention"]
"""Where a latent of the residual stream can come from: the papers' R, M and A."""
_PARTS: dict[str, Part] = {"mlp_out": "mlp", "attn_out": "attention"}


@dataclass(frozen=True)
class Link:
    """Two sites whose latents are matched: what `source` holds or writes is part of what `target` reads."""

    source: Site
    target: Site
    """Always a site of the residual stream."""

    @property
    def part(self) -> Part:
        """What the source is to the target."""
        return _PARTS.get(self.source.point, "residual")

    @property
    def name(self) -> str:
        """What stored tensors and seeds of it are called by."""
        return f"{self.source}-{self.target}"


def parse_latent(text: str) -> tuple[Site, int]:
    """`12.resid_post:4111` or `12:4111` as a site and a number. Raises InvalidInput."""
    place, _, latent = text.partition(":")
    block, _, point = place.partition(".")
    try:
        if not block.isdecimal():  # a latent has one name: none is counted from the end
            raise ValueError(block)
        return Site.model_validate({"index": int(block), "point": point or "resid_post"}), int(latent)
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} names no latent: write LAYER.POINT:NUMBER, e.g. 3.resid_post:17 or 3:17"
        ) from error


def depth(site: Site) -> int:
    """How many decoder blocks have written to the residual stream once `site` has: 0 before the first block."""
    return site.index if site.point == "resid_pre" else site.index + 1


def is_residual(site: Site) -> bool:
    """Whether it is a site of the residual stream itself."""
    return site.point in ("resid_pre", "resid_post")


def links(sites: Iterable[Site]) -> tuple[Link, ...]:
    """All neighbours among `sites`, from the first layer to the last: residual, MLP, attention of each target.

    A module neighbours the residual stream right behind its own block only; a module without that site has no link.
    """
    given = list(sites)
    residual = residual_sites(given)
    modules = [site for site in given if not is_residual(site)]
    before = dict(zip(residual[1:], residual, strict=False))
    found = []
    for target in residual:
        found += [Link(before[target], target)] if target in before else []
        beside = [Link(site, target) for site in modules if depth(site) == depth(target)]
        found += sorted(beside, key=lambda link: link.part, reverse=True)
    return tuple(found)


def residual_sites(sites: Iterable[Site]) -> list[Site]:
    """The sites of the residual stream, first to last."""
    return sorted((site for site in sites if is_residual(site)), key=depth)


def block_of(site: Site) -> int:
    """The decoder block after which a residual site stands; −1 before the first."""
    return depth(site) - 1


def targets(sites: Iterable[Site]) -> tuple[Site, ...]:
    """The residual sites that have one before them, first to last."""
    return tuple(residual_sites(sites)[1:])


def untraceable(sites: Iterable[Site]) -> tuple[str, ...]:
    """Why no flow can be traced through `sites`, one sentence each; nothing where it can."""
    given = list(sites)
    residual = residual_sites(given)
    if len(residual) < 2:
        return ("feature flow needs the residual stream of two layers or more, e.g. `layer: [0, 1, 2]`",)
    depths = [depth(site) for site in residual]
    doubled = [str(site) for site, at in zip(residual, depths, strict=True) if depths.count(at) > 1]
    lonely = [str(site) for site in given if not is_residual(site) and depth(site) not in depths]
    same = (f"{' and '.join(doubled)} are the same residual stream; keep one of them",) if doubled else ()
    return same + tuple(f"{site} has no residual stream behind its block; add the block's output" for site in lonely)
