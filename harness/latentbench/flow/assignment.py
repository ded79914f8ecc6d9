"""One-to-one matches: the permutation that maximises the summed similarity (SAE Match, arXiv 2410.07656, eq. 3).

min Σ ‖a_i − b_π(i)‖² over permutations π is max Σ <a_i, b_π(i)>, because the squared norms do not depend on π.

Memory beside the rows: the full assignment holds two matrices of width² float64 (1 GB at the largest `exact_width`, 8,192);
the sparse one about 100 bytes for each of at most width · (2 · neighbours + 1) edges, 0.2 GB at width 16,384 and 0.8 GB at
65,536 with 64 neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from latentbench.flow.matching import NOBODY, Nearest, nearest, rows_of

Numbers = NDArray[np.int64]
Values = NDArray[np.float64]


def assigned(
    source: Tensor, target: Tensor, *, unit: bool, exact_width: int, neighbours: int
) -> tuple[Nearest, Nearest]:
    """The best assignment of rows [Ws, d] to rows [Wt, d] in both directions; the wider side keeps latents without.

    Up to `exact_width` it is the optimum, at the price of width × width matrices. Above, a latent may only go to one
    of its `neighbours` most similar latents, to one that counts it among its own, or to the latent of its own number
    (which makes sure that an assignment exists); the optimum under that restriction is found.
    """
    if max(len(source), len(target)) <= exact_width:
        rows, columns, scores = _exact(source, target, unit)
    else:
        rows, columns, scores = _sparse(source, target, unit, neighbours)
    return _both(rows, columns, scores, len(source), len(target))


def _exact(source: Tensor, target: Tensor, unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    left, right = (rows_of(side, torch.float64, unit) for side in (source, target))
    similarity = (left @ right.T).cpu().numpy()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(similarity[rows, columns])


def _sparse(source: Tensor, target: Tensor, unit: bool, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, scores = _candidates(source, target, unit, neighbours)
    # The solver minimises, and takes a stored zero for no edge: costs start at 1.
    costs = csr_array((1 + scores.max() - scores, (rows, columns)), shape=(len(source), len(target)))
    left, right = min_weight_full_bipartite_matching(costs)
    found = 1 + scores.max() - np.asarray(costs[left, right]).reshape(-1)
    return torch.from_numpy(left).long(), torch.from_numpy(right).long(), torch.from_numpy(found)


def _candidates(source: Tensor, target: Tensor, unit: bool, neighbours: int) -> tuple[Numbers, Numbers, Values]:
    """Edges that the sparse assignment may use, each once: source latent, target latent, similarity float64."""
    forward, backward = nearest(source, target, min(neighbours, len(source), len(target)), unit=unit)
    same = torch.arange(min(len(source), len(target)), device=source.device)
    dtype = forward.scores.dtype
    diagonal = (rows_of(source[: len(same)], dtype, unit) * rows_of(target[: len(same)], dtype, unit)).sum(1)
    parts = [_edges(forward), _edges(backward)[[1, 0]], torch.stack([same, same])]
    edges = torch.cat(parts, 1).cpu().numpy()
    scores = torch.cat([forward.scores.flatten(), backward.scores.flatten(), diagonal]).double().cpu().numpy()
    _, first = np.unique(edges[0] * len(target) + edges[1], return_index=True)
    return edges[0, first], edges[1, first], scores[first]


def _edges(found: Nearest) -> Tensor:
    latents = torch.arange(len(found.indices), device=found.indices.device)[:, None].expand_as(found.indices)
    return torch.stack([latents.flatten(), found.indices.flatten()])


def _both(rows: Tensor, columns: Tensor, scores: Tensor, sources: int, targets: int) -> tuple[Nearest, Nearest]:
    return _column(rows, columns, scores, sources), _column(columns, rows, scores, targets)


def _column(rows: Tensor, columns: Tensor, scores: Tensor, width: int) -> Nearest:
    indices = torch.full((width, 1), NOBODY)
    values = torch.full((width, 1), -torch.inf, dtype=torch.float32)
    indices[rows, 0], values[rows, 0] = columns.long(), scores.float()
    return Nearest(indices, values)
