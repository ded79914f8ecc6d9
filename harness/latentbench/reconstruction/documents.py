"""The documents of one evaluation domain, run batch by batch: batches of similar length, and sums per document.

Sums end up in document order, whatever the order of the batches, and are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from latentbench.activations.batching import TOKENS_PER_FORWARD, batch_limit, batch_sizes
from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.fitting import Pieces
from latentbench.activations.massive import UNLIMITED, NormLimit, OrdinaryTokens, lengths, named_ids, named_mask
from latentbench.activations.residual import compared_part
from latentbench.activations.tokens import EvalTokens, real_mask, special_mask
from latentbench.core.progress import Count, Progress, unwatched
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.statistics.arrays import Array

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel

Result = TypeVar("Result")


@dataclass(frozen=True)
class DocumentBatch:
    """Documents that are run together, padded to the longest of them."""

    documents: Tensor
    """[B] int64, on the CPU: their numbers."""
    ids: Tensor
    """[B, T] int64."""
    real: Tensor
    """[B, T] bool: not padding."""
    ordinary: Tensor
    """[B, T] bool: neither padding nor special nor named by the spec; at a site, not massive there either."""
    number: int
    """Which of the domain's batches it is, or a part of."""
    places: Tensor
    """[B] int64, on the CPU: the documents' places in the whole batch of that number."""

    def part(self, rows: Tensor) -> DocumentBatch:
        """Some of its documents, by their places [n] in the batch, padded as they are."""
        here = rows.to(self.ids.device)
        tensors = self.documents[rows], self.ids[here], self.real[here], self.ordinary[here]
        return DocumentBatch(*tensors, self.number, self.places[rows])

    def at(self, site: Site, states: Tensor, tokens: OrdinaryTokens) -> DocumentBatch:
        """The same batch at a site with hidden states [B, T, d]: without the tokens that are massive there."""
        return replace(self, ordinary=self.ordinary & tokens.short(site, states))

    @property
    def rows(self) -> Tensor:
        """[N] int64: the document of each ordinary token, counted within the batch."""
        return self.ordinary.nonzero()[:, 0]

    @property
    def positions(self) -> Tensor:
        """[N] int64: the place of each ordinary token in its document, BOS at 0."""
        return self.ordinary.nonzero()[:, 1]

    @property
    def token_ids(self) -> Tensor:
        """[N] int64: the id of each ordinary token."""
        return self.ids[self.ordinary]


def limit_of(model: Any, forward_tokens: int) -> int:
    """Most padded tokens of a batch for a loaded model; see `batch_limit`."""
    return batch_limit(model.config.get_text_config().vocab_size, forward_tokens)


def document_batches(tokens: EvalTokens, excluded: Tensor, limit: int, device: torch.device) -> Iterator[DocumentBatch]:
    """All documents in the batches of `batch_sizes`, those of equal length in their own order.

    `excluded` [documents, context] marks tokens that do not count, special ones for example.
    """
    real = real_mask(tokens.lengths, tokens.ids.shape[1])
    order, done = torch.argsort(tokens.lengths, descending=True, stable=True), 0
    for number, (count, longest) in enumerate(batch_sizes(tokens.lengths.tolist(), limit)):
        chosen = order[done : done + count]
        done += count
        part = chosen, slice(0, longest)
        tensors = tokens.ids[part].to(device).long(), real[part].to(device), (real & ~excluded)[part].to(device)
        yield DocumentBatch(chosen, *tensors, number, torch.arange(len(chosen)))


def in_pieces(pieces: Pieces, work: Callable[[DocumentBatch], Result], batch: DocumentBatch) -> Iterator[Result]:
    """What `work` gives for a batch, or for parts of it where memory does not suffice for all of it."""
    return pieces.run(lambda rows: work(batch.part(rows)), torch.arange(len(batch.documents)))


class DocumentStates(Protocol):
    """Gives the hidden states of a domain's documents, batch by batch."""

    def read(self, batch: DocumentBatch, sites: Collection[Site]) -> dict[Site, Tensor]:
        """For each site the states [B, T, d], in the model's type, of all tokens of a batch or of a part of one."""

    def read_with_logits(self, batch: DocumentBatch, sites: Collection[Site]) -> tuple[dict[Site, Tensor], Tensor]:
        """The same, and the logits [B, T, vocabulary] of the model as it is."""


class LiveDocumentStates:
    """Computes them when they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def read(self, batch: DocumentBatch, sites: Collection[Site]) -> dict[Site, Tensor]:
        """See `DocumentStates`."""
        return hidden_states(self._model, sites, batch.ids, batch.real.long())

    def read_with_logits(self, batch: DocumentBatch, sites: Collection[Site]) -> tuple[dict[Site, Tensor], Tensor]:
        """See `DocumentStates`."""
        return hidden_states_and_logits(self._model, sites, batch.ids, batch.real.long())


class DocumentSums:
    """Named per-document sums, filled batch by batch, whatever the order of the batches."""

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self._sums: dict[str, Tensor] = {}

    def put(self, batch: DocumentBatch, **sums: Tensor) -> None:
        """Sets the sums [B] (or vectors [B, d]) of the batch's documents."""
        for name, values in sums.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._documents, *values.shape[1:], dtype=torch.float64)
            self._sums[name][batch.documents] = values.to("cpu", torch.float64)

    def pop(self, name: str) -> Tensor:
        """Takes one sum out."""
        return self._sums.pop(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    def arrays(self) -> dict[str, Array]:
        """All sums, [documents] float64."""
        return {name: values.numpy() for name, values in self._sums.items()}


def per_document(values: Tensor, mask: Tensor) -> Tensor:
    """[B] float64: sums over each row of `mask` [B, T] of `values` [N], one per True in row-major order."""
    spread = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    spread[mask] = values.double()
    return spread.sum(1)


def vector_sums(vectors: Tensor, batch: DocumentBatch) -> Tensor:
    """[B, d] float64: sums over each document of vectors [N, d], one per ordinary token of the batch."""
    counts = batch.ordinary.sum(1).tolist()
    return torch.stack([part.sum(0, dtype=torch.float64) for part in torch.split(vectors, counts)])


def squared_norms(vectors: Tensor) -> Tensor:
    """[N] float64: squared Euclidean norms of vectors [N, d]."""
    return vectors.square().sum(-1, dtype=torch.float64)


"""Called with the documents run so far and in all; documents are run twice where the domain's mean is not yet known."""


_TOKENS_OF_MEDIAN = 8192
"""Tokens from which the median length at a site is taken."""


class Domain:
    """A model and the documents of one evaluation domain, and which of their tokens count."""

    def __init__(
        self,
        language_model: LanguageModel,
        tokens: EvalTokens,
        forward_tokens: int,
        progress: Progress | None = None,
        rule: TokenRule = EVERY_TOKEN,
        states: DocumentStates | None = None,
    ) -> None:
        """`states` gives the hidden states of its batches; None has them computed.

        Raises InvalidInput for a text of `rule` that is not one token.
        """
        self.model, self.device = language_model.model, language_model.device
        self.states = states or LiveDocumentStates(self.model)
        self.documents = len(tokens.ids)
        self.passes = 0
        """How often the documents will be run in all, for the progress report."""
        self._tokens, self._forward_tokens, self._progress, self._rule = (
            tokens,
            forward_tokens,
            progress or unwatched,
            rule,
        )
        special = special_mask(tokens.ids, language_model.tokenizer)
        named = named_mask(tokens.ids, named_ids(rule, language_model.tokenizer))
        self.named = (named & ~special & real_mask(tokens.lengths, tokens.ids.shape[1])).sum(1).double()
        """[documents] float64: tokens that the rule names."""
        self._excluded = special | named
        self._passes_begun = self._run = self._tokens_run = 0
        self._all_tokens = int(tokens.lengths.sum())

    def run(self, work: Callable[[DocumentBatch], Result]) -> Iterator[Result]:
        """What `work` gives for each batch of documents: all of them, longest first, in halves from where memory runs out.

        What ran out of memory is done again, so `work` puts down what it found at its end (`activations.fitting`).
        """
        limit, pieces = limit_of(self.model, self._forward_tokens), Pieces(self.documents)
        self._passes_begun, self._run, self._tokens_run = self._passes_begun + 1, 0, 0
        self._tell()
        for batch in document_batches(self._tokens, self._excluded, limit, self.device):
            yield from in_pieces(pieces, work, batch)
            self._run += len(batch.documents)
            self._tokens_run += int(self._tokens.lengths[batch.documents].sum())
            self._tell()

    def _tell(self) -> None:
        # Documents come longest first, so that their number says little of the time. Passes differ much in what they cost.
        pace = Count(self._tokens_run, self._all_tokens, "tokens")
        part = f"pass {self._passes_begun} of {self.passes}" if self.passes > 1 else ""
        self._progress(self._run, self.documents, "documents", part=part, pace=pace)

    def limits(self, sites: Collection[Site]) -> dict[Site, NormLimit]:
        """How long a hidden state may be at each site, from the first documents that hold 8,192 tokens together.

        In passes of their own, and of a fixed size, so that the limits are the same whatever else is measured or stored.
        """
        if not sites or self._rule.multiple is None:
            return dict.fromkeys(sites, UNLIMITED)
        counts = (real_mask(self._tokens.lengths, self._tokens.ids.shape[1]) & ~self._excluded).sum(1)
        first = int((counts.cumsum(0) < _TOKENS_OF_MEDIAN).sum()) + 1
        some = replace(self._tokens, ids=self._tokens.ids[:first], lengths=self._tokens.lengths[:first])
        live, pieces = LiveDocumentStates(self.model), Pieces(first)

        def read(batch: DocumentBatch) -> dict[Site, Tensor]:
            return {site: lengths(x[batch.ordinary]).cpu() for site, x in live.read(batch, sites).items()}

        batches = document_batches(some, self._excluded[:first], TOKENS_PER_FORWARD, self.device)
        found = [part for batch in batches for part in in_pieces(pieces, read, batch)]
        return {site: NormLimit.of(torch.cat([part[site] for part in found]), self._rule.multiple) for site in sites}

    def means(self, sites: Collection[Site], counted: OrdinaryTokens) -> dict[Site, Array]:
        """Mean [d] float64 of what reconstructions are compared with, over all tokens that count at each site."""
        sums = {site: DocumentSums(self.documents) for site in sites}

        def add(batch: DocumentBatch) -> None:
            states = self.states.read(batch, sites)
            for site in sites:
                here = batch.at(site, states[site], counted)
                vectors = vector_sums(compared_part(site, states[site])[here.ordinary].float(), here)
                sums[site].put(here, tokens=here.ordinary.sum(1), states=vectors)

        for _ in self.run(add) if sites else ():
            pass
        return {site: _mean(total["states"], total["tokens"]) for site, total in sums.items()}


def _mean(vectors: Tensor, tokens: Tensor) -> Array:
    # In document order, so that it does not depend on the batches.
    mean: Array = (vectors.sum(0) / tokens.sum().clamp_min(1)).numpy()
    return mean
