"""Which latents fire on which tokens: sparse codes of several sites from one pass over texts.

Codes are kept sparse and of a few sites at a time. Everything is over ordinary tokens, neither padding nor special, in the
order of the documents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import NormLimit, OrdinaryTokens, lengths, named_ids, named_mask
from latentbench.activations.texts import training_rows
from latentbench.activations.tokens import EvalTokens, real_mask, special_mask
from latentbench.activations.vocabulary import embedding_rows
from latentbench.core.sites import Site
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import StageContext

TOKENS_PER_FORWARD = 4096
"""Tokens of one forward pass, padding included."""
SITES_AT_ONCE = 4
"""Sites whose SAEs a pass over texts holds: as many as lead to a residual site, and itself. More sites, more passes."""


class Activity:
    """The codes of one site over many tokens, taken in batch by batch and kept sparse: 8 bytes per active one."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._parts: list[csr_array] = []

    def add(self, codes: Codes) -> None:
        """Takes in the codes of further tokens."""
        values, indices = codes.values.detach().float().cpu(), codes.indices.cpu()
        on = values != 0
        ends = torch.cat([on.new_zeros(1, dtype=torch.int64), on.sum(1).cumsum(0)])
        data = values[on].numpy(), indices[on].int().numpy(), ends.int().numpy()
        self._parts.append(csr_array(data, shape=(len(values), self.width)))

    def matrix(self) -> csr_array:
        """[tokens, width] float32. The parts become this one matrix, so that nothing is held twice."""
        if len(self._parts) != 1:
            self._parts = [csr_array(vstack(self._parts))]
        return self._parts[0]

    def mean_active(self) -> Tensor:
        """[width] float32: each latent's mean activation where it is active; 1, which scales nothing, for one that never is."""
        codes = self.matrix()
        counts = np.bincount(codes.indices, minlength=self.width)
        sums = np.bincount(codes.indices, weights=codes.data, minlength=self.width)
        return torch.from_numpy(np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)).float()


_TOKENS_OF_MEDIAN = 8192
"""Tokens from which the median length at a site is taken."""


@dataclass(frozen=True)
class TokenRows:
    """Documents as rows of tokens, padded on the right."""

    ids: Tensor
    """[rows, context] integer."""
    lengths: Tensor
    """[rows] real tokens of each row."""
    limit: int | None = None
    """Ordinary tokens after which reading stops; None: never."""

    @staticmethod
    def of(tokens: EvalTokens) -> TokenRows:
        """All documents of an evaluation domain."""
        return TokenRows(tokens.ids, tokens.lengths)


@dataclass(frozen=True)
class Batch:
    """Rows that are run together, cut to the longest of them."""

    rows: slice
    """Which of the documents they are."""
    ids: Tensor
    """[B, T] int64."""
    real: Tensor
    """[B, T] bool: no padding."""
    ordinary: Tensor
    """[B, T] bool: neither padding nor special nor named by the spec."""


def texts_of(options: Flow, context: StageContext) -> TokenRows:
    """The texts that maps may be fitted on. Raises InvalidInput where the experiment has none."""
    data, domain = options.source(context.experiment)
    if domain is not None:
        tokens = context.tokens(domain)
        return TokenRows(tokens.ids, tokens.lengths, options.tokens)
    wanted = max(options.tokens, data.context)  # one whole row at least, since rows are all that is read
    # Fewer tokens are enough where the texts end before.
    known_ids = embedding_rows(context.model().model)
    rows = training_rows(data, context.roots, context.tokenizer(), known_ids, tokens=wanted, repeat=True)
    full = torch.full((len(rows.ids),), rows.ids.shape[1])
    return TokenRows(rows.ids, full if rows.lengths is None else rows.lengths, options.tokens)


def batches(context: StageContext, texts: TokenRows) -> Iterator[Batch]:
    """The rows in order, until `limit` ordinary tokens have been given: those beyond it in the last batch are not ordinary."""
    left, step = texts.limit, max(1, TOKENS_PER_FORWARD // texts.ids.shape[1])
    named = named_ids(context.experiment.token_rule, context.tokenizer())
    for start in range(0, len(texts.ids), step):
        rows = slice(start, start + step)
        longest = int(texts.lengths[rows].max())
        ids = texts.ids[rows, :longest].to(context.device).long()
        real = real_mask(texts.lengths[rows], longest).to(context.device)
        ordinary = real & ~special_mask(ids, context.tokenizer()) & ~named_mask(ids, named)
        if left is not None:
            ordinary &= (ordinary.flatten().cumsum(0) <= left).view_as(ordinary)
            left -= int(ordinary.sum())
        yield Batch(rows, ids, real, ordinary)
        if left is not None and left <= 0:
            return


def held(context: StageContext, sites: Iterable[Site]) -> dict[Site, SparseAutoencoder]:
    """The SAEs of some sites, in memory as long as this dictionary."""
    saes = context.saes()
    return {site: saes[site] for site in sites}


def groups(sites: Iterable[Site]) -> Iterator[list[Site]]:
    """Sites in order, as many at a time as one pass over texts reads."""
    given = list(sites)
    for start in range(0, len(given), SITES_AT_ONCE):
        yield given[start : start + SITES_AT_ONCE]


@torch.no_grad()
def ordinary_tokens(context: StageContext, texts: TokenRows, sites: Collection[Site]) -> OrdinaryTokens:
    """How long a hidden state may be at each site, from the first 8,192 ordinary tokens of the texts."""
    rule = context.experiment.token_rule
    if rule.multiple is None:
        return OrdinaryTokens()
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    some = replace(texts, limit=min(texts.limit or _TOKENS_OF_MEDIAN, _TOKENS_OF_MEDIAN))
    for batch in batches(context, some):
        states = hidden_states(context.model().model, sites, batch.ids, batch.real.long())
        for site, parts in found.items():
            parts.append(lengths(states[site][batch.ordinary]).cpu())
    return OrdinaryTokens(limits={site: NormLimit.of(torch.cat(parts), rule.multiple) for site, parts in found.items()})


def codes_at(
    context: StageContext, saes: Mapping[Site, SparseAutoencoder], batch: Batch, counted: OrdinaryTokens
) -> dict[Site, Codes]:
    """Codes of the batch's ordinary tokens at each site, in order; nothing is active on those that are massive there.

    They keep their places, so that token i is the same at every site.
    """
    states = hidden_states(context.model().model, saes, batch.ids, batch.real.long())
    found = {}
    for site, sae in saes.items():
        kept = batch.ordinary & counted.short(site, states[site])
        found[site] = sae.encode(states[site][kept].float()).spread(kept[batch.ordinary])
    return found


def activity(context: StageContext, texts: TokenRows, sites: Collection[Site]) -> dict[Site, Activity]:
    """The codes of all ordinary tokens at each site, as sparse matrices."""
    saes = held(context, sites)
    found, counted = {site: Activity(sae.width) for site, sae in saes.items()}, ordinary_tokens(context, texts, saes)
    for batch in batches(context, texts):
        for site, codes in codes_at(context, saes, batch, counted).items():
            found[site].add(codes)
    return found


def mean_active(context: StageContext, texts: TokenRows, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """[width] float32 of each site, see `Activity.mean_active`; any number of sites, some at a time."""
    found: dict[Site, Tensor] = {}
    for group in groups(sites):
        found |= {site: active.mean_active() for site, active in activity(context, texts, group).items()}
    return found


Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Firing:
    """Ordinary tokens of a domain, document by document, and which latents are active there."""

    codes: dict[Site, csr_array]
    """[tokens, width] float32 by site."""
    documents: Integers
    """[tokens] number of the document."""
    ids: Integers
    """[tokens] token id."""
    count: int
    """Number of documents."""


@torch.no_grad()
def firing(context: StageContext, tokens: EvalTokens, sites: Collection[Site]) -> Firing:
    """One pass over a domain. Memory: 8 bytes per active latent."""
    saes = held(context, sites)
    found = {site: Activity(sae.width) for site, sae in saes.items()}
    documents, ids = [], []
    counted = ordinary_tokens(context, TokenRows.of(tokens), saes)
    for batch in batches(context, TokenRows.of(tokens)):
        for site, codes in codes_at(context, saes, batch, counted).items():
            found[site].add(codes)
        documents.append(batch.ordinary.nonzero()[:, 0].cpu().numpy() + batch.rows.start)
        ids.append(batch.ids[batch.ordinary].cpu().numpy())
    matrices = {site: activity.matrix() for site, activity in found.items()}
    return Firing(matrices, np.concatenate(documents), np.concatenate(ids), len(tokens.ids))


def fired(codes: csr_array) -> csr_array:
    """[tokens, width] int8: 1 where a latent is active."""
    ones = np.ones(len(codes.indices), dtype=np.int8)
    return csr_array((ones, codes.indices, codes.indptr), shape=codes.shape)


def active_at(codes: csr_array, indices: Integers) -> csr_array:
    """[tokens, width] int8: 1 where any of the matches `indices` [width, k] of each latent is active; −1 is none."""
    on = fired(codes).tocsc()
    chosen = [on[:, np.where(column < 0, 0, column)].multiply(column >= 0) for column in indices.T]
    total = csr_array(sum(chosen[1:], start=chosen[0]))
    total.eliminate_zeros()
    return fired(total)


def firing_rates(codes: csr_array) -> Array:
    """[width] share of tokens on which each latent is active."""
    counts = np.bincount(codes.indices, minlength=codes.shape[1])
    return counts.astype(np.float64) / max(1, codes.shape[0])
