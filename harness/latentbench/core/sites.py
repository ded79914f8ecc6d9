"""Where in a model hidden states are read or replaced."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latentbench.core.spec_model import SpecModel

Layer = Annotated[int, Field(ge=-1000, lt=1000)]
"""Number of a decoder block, from 0 on; negative ones count from the end, -1 is the last block."""
Place = Literal["resid_pre", "resid_post", "mlp_out", "attn_out"]
"""A hidden state of a block: what it is given, what it gives, and what its MLP and its attention add."""
OUTPUT: Place = "resid_post"
"""The output of a block, which a layer means where nothing else is said."""
Point = Literal[Place, "mlp"]
PAIR: Point = "mlp"
"""What a block's MLP is given and, behind it, what it adds, as one vector [2 d]: where transcoders read and are compared."""


class Site(SpecModel):
    """A point of one decoder block. `resid_post` of block i is its output, the field's "layer i residual stream"."""

    index: Layer
    """Number of the decoder block, counted from 0; in a spec also from the end, -1 being the last one."""
    point: Point = "resid_post"
    """Which hidden state of the block: its input, its output, or what its MLP or attention adds; `mlp`: what its MLP is given and
    what it adds, for transcoders."""

    def __str__(self) -> str:
        return f"{self.index}.{self.point}"


def resumed_from(site: Site) -> tuple[Site, ...]:
    """Where else the hidden state is needed to resume a pass at `site`: at the entrance of its block, for a part of that."""
    return (Site(index=site.index, point="resid_pre"),) if site.point in ("attn_out", "mlp_out", PAIR) else ()


def written_at(site: Site) -> Site:
    """Where a reconstruction takes a hidden state's place: of what an MLP is given and adds, only the latter can be replaced."""
    return site.model_copy(update={"point": "mlp_out"}) if site.point == PAIR else site


def block_number(layer: int, blocks: int) -> int | None:
    """The block that `layer` means in a model of that many; None where it has no such block."""
    return layer % blocks if -blocks <= layer < blocks else None
