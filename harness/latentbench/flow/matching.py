"""Matching the latents of two dictionaries: the nearest rows, the best one-to-one assignment, or those that fire together.

Rows. Decoder and encoder rows are brought to a scale that two SAEs share (SAE Match, arXiv 2410.07656, eq. 4): a JumpReLU
latent with threshold θ does the same as one with threshold 1, encoder row w_enc / θ and decoder row θ w_dec.

`nearest`, both ways, tile by tile: a width × width matrix never exists. Besides the inputs and the results it holds one tile
of similarities and the two slices of rows it is made of, however wide the dictionaries are:
4 · (SOURCE_ROWS · TARGET_ROWS + (SOURCE_ROWS + TARGET_ROWS) · d) bytes in float32 times at most 2 for temporaries, which is
150 MB at d = 2,304. One matrix product serves both directions.

`assigned`, one to one: the permutation that maximises the summed similarity (SAE Match, eq. 3). min Σ ‖a_i − b_π(i)‖² over
permutations π is max Σ <a_i, b_π(i)>, because the squared norms do not depend on π. Memory beside the rows: the full
assignment holds two matrices of width² float64 (1 GB at the largest `exact_width`, 8,192); the sparse one about 100 bytes for
each of at most width · (2 · neighbours + 1) edges, 0.2 GB at width 16,384 and 0.8 GB at 65,536 with 64 neighbours.

`correlated`, latents that fire together: Pearson correlations of two sites' sparse codes, without a width × width matrix.
r_ij = (n Σ z_i z_j − Σ z_i Σ z_j) / √((n Σ z_i² − (Σ z_i)²)(n Σ z_j² − (Σ z_j)²)), in float64. Memory: the codes of all
tokens, so it grows with them: 8 bytes per active latent of either site, and 20 more per two for copies of both, 230 MB for
100,000 tokens with 64 active latents at each site. On top of that one tile: correlations of a few latents with the whole
other dictionary, TILE of them however wide it is, in at most 28 bytes each (117 MB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array, csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.flow.activity import Activity
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.encoders import ThresholdRule
from latentbench.sae.linear import linear_weights


def decoder_rows(sae: SparseAutoencoder, site: Site) -> Tensor:
    """[width, d_in]. Raises InvalidInput for an SAE without a dictionary."""
    rows = sae.decoder_rows()
    if rows is None:
        raise InvalidInput(f"{site}: {type(sae).__name__} has no decoder rows to match")
    return rows.detach()


def encoder_rows(sae: SparseAutoencoder) -> Tensor:
    """[width, d_in]. Raises InvalidInput for an SAE without a linear encoder."""
    return torch.cat([group.W_enc for group in linear_weights(sae).groups]).detach()


def thresholds(sae: SparseAutoencoder, site: Site) -> Tensor:
    """[width] θ > 0 of a JumpReLU (or BatchTopK) SAE. Raises InvalidInput for one that selects otherwise."""
    groups = linear_weights(sae).groups
    found = [group.rule.threshold.expand(group.width) for group in groups if isinstance(group.rule, ThresholdRule)]
    if len(found) < len(groups) or not all(bool((theta > 0).all()) for theta in found):
        raise InvalidInput(
            f"{site}: {type(sae).__name__} has no positive thresholds to fold; use mean activations "
            "(`fold: activation`, `scales: [activation]`) instead"
        )
    return torch.cat(found).detach()


SOURCE_ROWS, TARGET_ROWS = 2048, 4096
"""Latents of either side that are compared at once."""
NOBODY = -1
"""In the place of a latent number: no match."""


class Nearest(NamedTuple):
    """The best of other latents for each latent, descending."""

    indices: Tensor
    """[width, k] int64 latent numbers of the other dictionary; NOBODY where it has fewer than k latents."""
    scores: Tensor
    """[width, k] similarities; −inf beside NOBODY."""


def nearest(source: Tensor, target: Tensor, k: int, *, unit: bool = True) -> tuple[Nearest, Nearest]:
    """For every row of `source` [Ws, d] the k most similar of `target` [Wt, d], and the other way round.

    Similarity is the cosine, or the inner product where not `unit`. A row of zeros has cosine 0 with everything.
    Of equal similarities the earlier latent wins at k = 1. float32, or float64 where both are; on the rows' device.
    """
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    forward, backward = (
        BestMatches(len(source), k, dtype, source.device),
        BestMatches(len(target), k, dtype, source.device),
    )
    # All tiles are written into one buffer: the allocator would hold one of them beside the next.
    buffer = source.new_empty(min(SOURCE_ROWS, len(source)) * min(TARGET_ROWS, len(target)), dtype=dtype)
    for left in range(0, len(source), SOURCE_ROWS):
        rows = rows_of(source[left : left + SOURCE_ROWS], dtype, unit)
        for top in range(0, len(target), TARGET_ROWS):
            others = rows_of(target[top : top + TARGET_ROWS], dtype, unit)
            tile = torch.mm(rows, others.T, out=buffer[: len(rows) * len(others)].view(len(rows), len(others)))
            forward.add(tile, 1, left, top)
            backward.add(tile, 0, top, left)
    return forward.found(), backward.found()


def pair_cosines(source: Tensor, target: Tensor, indices: Tensor) -> Tensor:
    """[W, k] cosines between each row of `source` [W, d] and the rows of `target` at `indices` [W, k]; 0 at NOBODY."""
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    parts = []
    for start in range(0, len(source), SOURCE_ROWS):
        rows, chosen = (part[start : start + SOURCE_ROWS] for part in (source, indices))
        columns = [rows_of(target[column.clamp_min(0)], dtype, True) for column in chosen.unbind(1)]
        own = rows_of(rows, dtype, True)
        parts.append(torch.stack([(own * column).sum(1) for column in columns], 1) * (chosen != NOBODY))
    return torch.cat(parts)


def rows_of(rows: Tensor, dtype: torch.dtype, unit: bool) -> Tensor:
    """Rows in `dtype`, at unit length where asked for; rows of zeros stay zeros."""
    rows = rows.detach().to(dtype)
    return torch.nn.functional.normalize(rows, dim=1) if unit else rows


class BestMatches:
    """The k best so far of each latent, over tiles."""

    def __init__(self, width: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.scores = torch.full((width, k), -torch.inf, dtype=dtype, device=device)
        self.indices = torch.full((width, k), NOBODY, dtype=torch.int64, device=device)

    def add(self, tile: Tensor, dim: int, start: int, offset: int) -> None:
        """Takes in a tile whose latents begin at `start` and whose other latents, along `dim`, begin at `offset`."""
        k, others = self.scores.shape[1], tile.shape[dim]
        part = slice(start, start + tile.shape[1 - dim])
        if k == 1:
            values, indices = tile.max(dim)
            better = values > self.scores[part, 0]  # not ≥: of equal ones the earlier stays
            self.scores[part, 0] = torch.where(better, values, self.scores[part, 0])
            self.indices[part, 0] = torch.where(better, indices + offset, self.indices[part, 0])
            return
        # The best of a tile and the best so far hold the best of both: nothing else of the tile is looked at again.
        values, indices = (x if dim == 1 else x.T for x in tile.topk(min(k, others), dim))
        scores = torch.cat([self.scores[part], values], 1)
        self.scores[part], order = scores.topk(k, 1)
        self.indices[part] = torch.cat([self.indices[part], indices + offset], 1).gather(1, order)

    def found(self) -> Nearest:
        return Nearest(self.indices, self.scores)


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
    # float64: SciPy would make such a copy of a float32 matrix anyway.
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
    # An edge may come from both sides and the diagonal; as a sparse matrix its entries would be added up.
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


TILE = 1 << 22
"""Correlations that exist at once."""


@dataclass(frozen=True)
class _Moments:
    """Sums over all tokens of one site's activations."""

    sums: NDArray[np.float64]
    """Σ z [width]."""
    spread: NDArray[np.float64]
    """√(n Σ z² − (Σ z)²) [width]; infinity for a latent that is constant, so that its correlations are 0."""

    @staticmethod
    def of(codes: csr_array) -> _Moments:
        values, (tokens, width) = codes.data.astype(np.float64), codes.shape
        sums = np.bincount(codes.indices, weights=values, minlength=width).astype(np.float64)
        squares = np.bincount(codes.indices, weights=values * values, minlength=width).astype(np.float64)
        spread = np.sqrt(np.maximum(tokens * squares - sums**2, 0))
        return _Moments(sums, np.where(spread > 0, spread, np.inf))


def correlated(source: Activity, target: Activity, k: int) -> tuple[Nearest, Nearest]:
    """For every latent the k of the other site with the highest correlation, both ways.

    Both must have taken in the same tokens. A latent that never fires correlates 0 with everything.
    """
    left, right = source.matrix(), target.matrix()
    moments = _Moments.of(left), _Moments.of(right)
    columns, wide = csc_array(left), right.astype(np.float64)
    cpu = torch.device("cpu")
    forward, backward = (BestMatches(a.width, k, torch.float64, cpu) for a in (source, target))
    step = max(1, TILE // target.width)
    tile = np.empty((min(step, source.width), target.width))
    for start in range(0, source.width, step):
        rows = slice(start, min(start + step, source.width))
        found = torch.from_numpy(_correlations(columns[:, rows], wide, moments, rows, tile[: rows.stop - start]))
        forward.add(found, 1, start, 0)
        backward.add(found, 0, 0, start)
    return forward.found(), backward.found()


def _correlations(
    columns: csc_array, codes: csr_array, moments: tuple[_Moments, _Moments], rows: slice, tile: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Those of some latents, `columns` [tokens, n], with all others, written to `tile` [n, width]."""
    (one, other), tokens = moments, codes.shape[0]
    (columns.astype(np.float64).T @ codes).toarray(out=tile)
    for row, total, spread in zip(tile, one.sums[rows], one.spread[rows], strict=True):
        row *= tokens
        row -= total * other.sums
        row /= spread * other.spread
    return tile
