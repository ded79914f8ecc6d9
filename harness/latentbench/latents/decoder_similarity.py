"""Cosines of decoder directions: the study `decoder` (decoder.py), nearest latents of one SAE, and how far SAEs that differ
only in their seed find the same latents.

Cosines are computed in chunks: no matrix of width × width exists, except for the Hungarian method.

Consistency is about several SAEs at once, each a cell of its own. A cell's numbers must follow from its own stages, so that they
can be cached, resumed and re-used; a number that changes when another seed is added would break that. Consistency is
therefore computed from finished cells (`latentbench report consistency`), not inside of one.

With cos_ij the cosine of decoder row i of one SAE and row j of another, both of width F:

| number | formula |
| --- | --- |
| best match | ½ [mean_i max_j cos_ij + mean_j max_i cos_ij]; several latents may claim the same partner |
| matched | max over permutations π of (1/F) Σ_i cos_{i π(i)}: one partner each (Hungarian method) |
| shared | share of latents whose matched cosine is at least 0.7 |

Best match is the mean max cosine similarity of arXiv 2309.08600, made symmetric; matched and shared follow arXiv
2501.16615, where 0.7 is the threshold. The Hungarian method needs all F² cosines and about F³ steps, so beyond 4096
latents only the best match is computed. Two random dictionaries do not have 0: `chance` is the same number for the
first SAE and Gaussian rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.latents.decoder import DOMAIN, Decoder
from latentbench.metrics.values import null_value
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.linear import linear_weights
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.study.context import StageContext

_ENTRIES = 1 << 24
"""Cosines that exist at once."""


def measure_decoder(study: Decoder, context: StageContext) -> Findings:
    """Both cosines of every latent; nulls with the reason for an SAE without a dictionary."""
    try:
        rows = decoder_of(context.sae).float()
    except InvalidInput as error:
        return Findings(values=tuple(null_value(number, DOMAIN, str(error)) for number in study.numbers()))
    real = rows.norm(dim=1) > 0
    found = {"max_cosine": nearest(rows, 1).cosines[:, 0]} if len(rows) > 1 else {}
    with suppress(InvalidInput):  # no linear encoder: "not measured: decoder.linear_encoder_cosine"
        found["linear_encoder_cosine"] = row_cosines(encoder_of(context.sae).float(), rows)
    return Findings({DOMAIN: _statistics(found, real)})


def _statistics(found: Mapping[str, Tensor], real: Tensor) -> dict[str, Array]:
    values = {name: (value * real).double().cpu().numpy() for name, value in found.items()}
    return {f"decoder.{name}": value for name, value in {**values, "latents": real.double().cpu().numpy()}.items()}


class Neighbours(NamedTuple):
    """For each of n directions the nearest of others, nearest first."""

    cosines: Tensor
    """[n, k]"""
    indices: Tensor
    """[n, k] int64"""


def nearest(rows: Tensor, k: int, of: Tensor | None = None) -> Neighbours:
    """The k other rows of `rows` [width, d] with the largest cosine to each of them (or only to the numbers `of`).

    A row never counts as its own neighbour; rows of zeros have cosine 0 to everything. k is at most width − 1.
    """
    unit = F.normalize(rows, dim=1)
    wanted = torch.arange(len(rows), device=rows.device) if of is None else of
    k = min(k, len(rows) - 1)
    found = [_strongest(unit, part, k) for part in torch.split(wanted, _rows_at_once(len(rows)))]
    if not found:
        return Neighbours(rows.new_zeros(0, k), wanted.new_zeros(0, k))
    return Neighbours(torch.cat([n.cosines for n in found]), torch.cat([n.indices for n in found]))


def best_matches(a: Tensor, b: Tensor) -> Tensor:
    """[n] the largest cosine of each row of `a` [n, d] to any row of `b` [m, d]."""
    other = F.normalize(b, dim=1)
    return torch.cat([(part @ other.t()).amax(1) for part in _chunks(F.normalize(a, dim=1), len(b))])


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """[n] cosine of row i of `a` [n, d] and row i of `b` [n, d]."""
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


def decoder_of(sae: SparseAutoencoder) -> Tensor:
    """Its dictionary [width, d_in] without gradients. Raises InvalidInput where there is none."""
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput(f"{type(sae).__name__} has no dictionary")
    return rows.detach()


def encoder_of(sae: SparseAutoencoder) -> Tensor:
    """Its linear encoder's rows [width, d_in]. Raises InvalidInput where there is none (KronSAE)."""
    return torch.cat([group.W_enc for group in linear_weights(sae).groups]).detach()


def _strongest(unit: Tensor, part: Tensor, k: int) -> Neighbours:
    cosines = unit[part] @ unit.t()
    cosines[torch.arange(len(part), device=part.device), part] = -torch.inf
    return Neighbours(*cosines.topk(k, dim=1))


def _rows_at_once(width: int) -> int:
    return max(1, _ENTRIES // max(1, width))


def _chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
    return iter(torch.split(rows, _rows_at_once(width)))


HUNGARIAN_LIMIT = 4096
SHARED_COSINE = 0.7
_CHANCE_SEED = seed_of("consistency", "chance")


@dataclass(frozen=True)
class Agreement:
    """How two dictionaries agree."""

    best_match: float
    matched: float | None = None
    """None beyond the Hungarian method's limit, or for unequal widths."""
    shared: float | None = None


@dataclass(frozen=True)
class Consistency:
    """Agreement of every pair of SAEs, and what chance gives."""

    pairs: dict[tuple[int, int], Agreement]
    """By the numbers of the two SAEs."""
    chance: Agreement

    @property
    def mean(self) -> Agreement:
        """The mean over pairs."""
        found = list(self.pairs.values())
        return Agreement(
            sum(pair.best_match for pair in found) / len(found),
            _mean([pair.matched for pair in found]),
            _mean([pair.shared for pair in found]),
        )


def consistency(decoders: Sequence[Tensor]) -> Consistency:
    """Of two or more decoders [width, d_in]. Raises InvalidInput for fewer or for different dimensions."""
    if len(decoders) < 2:
        raise InvalidInput("consistency needs the same SAE from two seeds or more")
    if len({rows.shape[1] for rows in decoders}) > 1:
        raise InvalidInput("these SAEs read hidden states of different dimensions")
    pairs = {
        (a, b): agreement(decoders[a].float(), decoders[b].float()) for a, b in combinations(range(len(decoders)), 2)
    }
    first = decoders[0].float()
    gaussian = torch.randn(first.shape, generator=torch.Generator().manual_seed(_CHANCE_SEED)).to(first)
    return Consistency(pairs, agreement(first, gaussian))


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """Of two decoders [width, d_in]; rows of zeros are left out."""
    a, b = a[a.norm(dim=1) > 0], b[b.norm(dim=1) > 0]
    if not len(a) or not len(b):
        raise InvalidInput("an SAE without a decoder row that is not zero matches nothing")
    best = float((best_matches(a, b).mean() + best_matches(b, a).mean()) / 2)
    if max(len(a), len(b)) > HUNGARIAN_LIMIT or len(a) != len(b):
        return Agreement(best)
    cosines = matched_cosines(a, b)
    return Agreement(best, float(cosines.mean()), float((cosines >= SHARED_COSINE).double().mean()))


def matched_cosines(a: Tensor, b: Tensor) -> Tensor:
    """[n] cosine of each row of `a` [n, d] to its partner in `b` [n, d] under the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t()
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
