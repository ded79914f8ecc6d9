"""How far SAEs that differ only in their seed find the same latents.

It is about several SAEs at once, each a cell of its own. A cell's numbers must follow from its own stages, so that they
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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from latentbench.canonical import seed_of
from latentbench.errors import InvalidInput
from latentbench.metrics.latents.cosines import best_matches

HUNGARIAN_LIMIT = 4096
SHARED = 0.7
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
    return Agreement(best, float(cosines.mean()), float((cosines >= SHARED).double().mean()))


def matched_cosines(a: Tensor, b: Tensor) -> Tensor:
    """[n] cosine of each row of `a` [n, d] to its partner in `b` [n, d] under the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t()
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
