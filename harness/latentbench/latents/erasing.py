"""Texts from which latents are taken: their states, codes and probes, and what probes say once latents are ablated.

What needs the model is made once for all SAEs at a place, and so are the probes. Ablation is linear in the codes (erasure.py), so
what it does to a probe's score is a product of mean codes with what each latent's decoder row is worth to the probe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.activations.batching import TOKENS_PER_FORWARD
from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import OrdinaryTokens
from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.activations.vocabulary import embedding_rows, positions
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.core.text_digests import digest_of
from latentbench.core.token_rule import TokenRule
from latentbench.latents.decoder_similarity import decoder_of
from latentbench.latents.label_probes import probe_of
from latentbench.latents.probing import Labels, Probe, columns, sparse_matrix
from latentbench.reconstruction.documents import DocumentBatch, Domain
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import Content

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from latentbench.core.protocols import DatasetAdapter, LanguageModel
    from latentbench.latents.erasure import ErasureStudy, Pooling
    from latentbench.study.context import StageContext

RANDOM_DRAWS = 10
"""Sets of latents that the random control is a mean over."""
_TOKENS_AT_ONCE = 4096
_ROWS_CHECKED, _ROUNDING = 64, 1e-2
"""Latents that must each write what their rows say, but for this share of it."""
_VERSION = 1


@dataclass(frozen=True)
class TokenStates:
    """The hidden states of the tokens that count, text after text."""

    states: Tensor
    """[N, d], in the model's type."""
    counts: Tensor
    """[texts] int64: tokens of each; 0 where none counts."""

    @property
    def mean(self) -> csr_array:
        """[texts, N] what takes the mean over each text."""
        from scipy.sparse import csr_array

        counts = self.counts.numpy()
        rows = np.repeat(np.arange(len(counts)), counts)
        return csr_array((1.0 / counts[rows], (rows, np.arange(len(rows)))), shape=(len(counts), len(rows)))


@torch.no_grad()
def token_states(
    model: LanguageModel, site: Site, rule: TokenRule, texts: Sequence[str], data: DatasetAdapter, pooling: Pooling
) -> TokenStates:
    """One pass over the texts, as `data` would have them read: all tokens that count, or the last of each.

    Raises InvalidInput where the model has no positions for them.
    """
    room = positions(model.model)
    if room is not None and data.context > room:
        raise InvalidInput(f"context: the model has positions for {room} tokens, not {data.context}")
    known = embedding_rows(model.model)
    tokens = evaluation_tokens(
        texts, model.tokenizer, context=data.context, known_ids=known, prepend_bos=data.prepend_bos
    )
    found = _of_rows(Domain(model, tokens, TOKENS_PER_FORWARD, None, rule), site, tokens, pooling)
    # Texts of fewer than two tokens have no row.
    row_of = {digest: row for row, digest in enumerate(tokens.digests)}
    rows = [row_of.get(f"{digest_of(text):016x}") for text in texts]
    parts = [found[0][:0] if row is None else found[row] for row in rows]
    return TokenStates(torch.cat(parts), torch.tensor([len(part) for part in parts]))


def _of_rows(domain: Domain, site: Site, tokens: EvalTokens, pooling: Pooling) -> list[Tensor]:
    """[its tokens, d] for each row."""
    counted = OrdinaryTokens(limits=domain.limits([site]))

    def kept(whole: DocumentBatch) -> tuple[list[int], list[Tensor]]:
        states = hidden_states(domain.model, [site], whole.ids, whole.real.long())[site]
        ordinary = whole.at(site, states, counted).ordinary
        first = 0 if pooling == "mean" else -1
        rows = [one[here][first:].cpu() for one, here in zip(states, ordinary, strict=True)]
        return whole.documents.tolist(), rows

    found: dict[int, Tensor] = {}
    for documents, states in domain.run(kept):
        found.update(zip(documents, states, strict=True))
    return [found[row] for row in range(len(tokens.ids))]


@dataclass(frozen=True)
class Reader:
    """Reads labelled texts where a cell's SAE does; what the model says of them is in the store."""

    study: ErasureStudy
    context: StageContext
    data: DatasetAdapter

    def tokens_of(self, texts: Sequence[str]) -> TokenStates:
        """The states of the texts' tokens, computed once for all SAEs at the site."""
        site, rule = next(iter(self.context.saes())), self.context.experiment.token_rule
        asked = self._asked(texts)

        def make() -> Content:
            made = token_states(self.context.model(), site, rule, texts, self.data, self.study.pooling)
            return Content({"states": made.states, "counts": made.counts})

        tensors = self.context.shared("token_states", asked, make).tensors
        return TokenStates(tensors["states"], tensors["counts"])

    def probes_of(self, texts: Sequence[str], tasks: Sequence[tuple[Labels, Labels]], states: Array) -> list[Probe]:
        """A probe for each (labels, texts it is trained on), both [texts]; fitted once for all SAEs at the site."""
        said = hashlib.sha256(b"".join(np.packbits(np.stack(task), axis=1).tobytes() for task in tasks)).hexdigest()

        def make() -> Content:
            probes = [probe_of(states[train], labels[train]) for labels, train in tasks]
            directions, offsets = [one.direction for one in probes], [one.offset for one in probes]
            offset = torch.tensor(offsets, dtype=torch.float64)
            return Content({"directions": torch.from_numpy(np.stack(directions)), "offsets": offset})

        asked = {**self._asked(texts), "tasks": said, "count": len(tasks)}
        tensors = self.context.shared("erasure_probes", asked, make).tensors
        pairs = zip(tensors["directions"].numpy(), tensors["offsets"].tolist(), strict=True)
        return [Probe(direction, offset) for direction, offset in pairs]

    def _asked(self, texts: Sequence[str]) -> dict[str, Json]:
        words = b"".join(digest_of(text).to_bytes(8, "big") for text in texts)
        return {
            "texts": hashlib.sha256(words).hexdigest(),
            "context": self.data.context,
            "prepend_bos": self.data.prepend_bos,
            "pooling": self.study.pooling,
            "site": next(iter(self.context.saes())).plain(),
            "token_rule": self.context.experiment.token_rule.plain(),
            "version": _VERSION,
        }


@dataclass(frozen=True)
class Erasable:
    """Texts as mean states and mean codes, and what the latents write."""

    states: Array
    """[texts, d]"""
    latents: csr_array
    """[texts, width]"""
    rows: Array
    """[width, d] decoder rows."""

    @property
    def width(self) -> int:
        """Of the dictionary."""
        return len(self.rows)

    def strongest(self, probe: Probe, labels: Labels, train: Labels) -> NDArray[np.int64]:
        """All latents, those first that tell the probe most of the labels [texts] on the texts of training."""
        return np.argsort(-self.attribution(probe, labels, train), kind="stable")

    def attribution(self, probe: Probe, labels: Labels, train: Labels) -> Array:
        """[width] |difference of mean codes between texts with the label and without · what the row is worth to the probe|."""
        difference = self.latents[train & labels].mean(0) - self.latents[train & ~labels].mean(0)
        found: Array = np.abs(np.asarray(difference).ravel() * (self.rows @ probe.direction))
        return found

    def firing(self, train: Labels) -> NDArray[np.int64]:
        """The latents that fire on any text of training."""
        return np.unique(self.latents[train].indices)

    def scores(self, probes: Sequence[Probe], texts: Labels, ablated: NDArray[np.int64]) -> list[Array]:
        """[chosen texts] what each probe says of the texts once latents are ablated from all of their tokens."""
        states, codes, rows = self.states[texts], columns(self.latents[texts], ablated), self.rows[ablated]
        return [probe.scores(states) - codes @ (rows @ probe.direction) for probe in probes]

    def scores_without(self, erased: Probe, probes: Sequence[Probe], texts: Labels, train: Labels) -> list[Array]:
        """The same once the direction of another probe is set to its mean over the texts of training instead."""
        states, unit = self.states[texts], erased.direction / np.linalg.norm(erased.direction)
        along = (states - self.states[train].mean(0)) @ unit
        return [probe.scores(states) - along * (unit @ probe.direction) for probe in probes]


@torch.no_grad()
def erasable(tokens: TokenStates, sae: SparseAutoencoder, rows: Tensor) -> Erasable:
    """Texts of which all have tokens; `rows` [width, d] are what `latents_written` gives."""
    from scipy.sparse import csr_array

    mean, texts = tokens.mean, len(tokens.counts)
    latents, states = csr_array((texts, sae.width)), np.zeros((texts, sae.d_in))
    for start in range(0, len(tokens.states), _TOKENS_AT_ONCE):
        part = tokens.states[start : start + _TOKENS_AT_ONCE].to(rows.device).float()
        weights = mean[:, start : start + len(part)]
        latents = latents + weights @ sparse_matrix(sae.encode(part), sae.width)
        states += weights @ part.cpu().double().numpy()
    return Erasable(states, csr_array(latents), rows.cpu().double().numpy())


@torch.no_grad()
def latents_written(sae: SparseAutoencoder) -> Tensor:
    """[width, d] what each latent adds to the hidden state at activation 1.

    Raises InvalidInput where the SAE has no dictionary, or does not just add its rows up.
    """
    rows = decoder_of(sae)
    some = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS_CHECKED), device=rows.device).long()
    on = torch.ones(len(some), 1, dtype=rows.dtype, device=rows.device)
    written = sae.decode(Codes(on, some[:, None])) - sae.decode(Codes(0 * on, some[:, None]))
    if (written - rows[some]).norm() > _ROUNDING * rows[some].norm():
        raise InvalidInput(
            f"{type(sae).__name__} does not add up its decoder rows, so no latent can be ablated by itself"
        )
    return rows


def random_latents(among: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """`RANDOM_DRAWS` choices of `count` latents, all of them where there are fewer."""
    return [rng.choice(among, min(count, len(among)), replace=False) for _ in range(RANDOM_DRAWS)]


def too_wide(study: ErasureStudy, width: int) -> dict[str, str]:
    """Why statistics of more latents than there are are missing, by their names."""
    names = ("score", "own", "others", "random_score")
    return {
        study.statistic(name, n): f"{n} latents cannot be ablated of {width}"
        for n in study.numbers_of_latents
        if n > width
        for name in names
    }


def left_out(metric: str, what: str, reasons: Sequence[str]) -> tuple[str, ...]:
    """The warning that names what was left out, if anything."""
    if not reasons:
        return ()
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return (f"{metric}: {len(reasons)} {what} were left out: {'; '.join(reasons[:5])}{more}",)
