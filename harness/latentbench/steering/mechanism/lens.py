"""The logit lens of a vector: which tokens it points to, read straight through the unembedding.

For a vector v and rows w_t of the unembedding: dot_t = w_t · v and cos_t = w_t · v / (‖w_t‖ ‖v‖), as in Small Vectors
(arXiv 2509.06608, section 5 and its code): the final norm is not applied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.section import Json
from latentbench_adapters.protocols import LanguageModel


@dataclass(frozen=True)
class Reading:
    """The tokens nearest to a vector and those farthest from it."""

    top: list[dict[str, Json]]
    """`{token, id, cosine, dot}`, highest cosine first."""
    bottom: list[dict[str, Json]]
    """Lowest cosine first."""


@torch.no_grad()
def read_vector(lm: LanguageModel, vector: Tensor, count: int = 20) -> Reading:
    """The lens of `vector` [d_model] with `count` tokens at either end."""
    rows = lm.model.get_output_embeddings().weight.detach()  # type: ignore[no-untyped-call]
    direction = vector.to(rows.device, torch.float32)
    # float32 in chunks: the unembedding of a large model does not fit twice.
    dots = torch.cat([chunk.float() @ direction for chunk in rows.split(16384)])
    norms = torch.cat([torch.linalg.vector_norm(chunk.float(), dim=1) for chunk in rows.split(16384)])
    cosines = dots / (norms * direction.norm()).clamp_min(1e-30)
    order = torch.argsort(cosines, descending=True, stable=True).tolist()
    return Reading(
        [_token(lm, token, cosines, dots) for token in order[:count]],
        [_token(lm, token, cosines, dots) for token in order[::-1][:count]],
    )


def _token(lm: LanguageModel, token: int, cosines: Tensor, dots: Tensor) -> dict[str, Json]:
    shown = token_text(lm, token)
    return {"token": shown, "id": token, "cosine": round(float(cosines[token]), 6), "dot": round(float(dots[token]), 6)}


def token_text(lm: LanguageModel, token: int) -> str:
    """A token as text, its leading space included."""
    return str(lm.tokenizer.decode([token]))
