"""Where in a model hidden states are read or replaced."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.section import Section

Point = Literal["resid_pre", "resid_post", "mlp_out", "attn_out"]


class Site(Section):
    """A point of one decoder block. `resid_post` of block i is its output, the field's "layer i residual stream"."""

    index: Annotated[int, Field(ge=0)]
    """Number of the decoder block, counted from 0."""
    point: Point = "resid_post"
    """Which hidden state of the block: its input, its output, or what its MLP or attention adds."""

    def __str__(self) -> str:
        return f"{self.index}.{self.point}"
