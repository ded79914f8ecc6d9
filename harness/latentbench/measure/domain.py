"""A model and the documents of one evaluation domain, run batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens, special_mask
from latentbench.measure.batches import DocumentBatch, DocumentSums, document_batches, vector_sums
from latentbench.metrics.base import Array

if TYPE_CHECKING:
    from latentbench_adapters.protocols import LanguageModel

Progress = Callable[[int, int], None]
"""Called with the documents run so far and in all; documents are run twice where the domain's mean is not yet known."""

_LOGITS_PER_FORWARD = 2**28
"""Logits of one forward pass (1 GiB in float32), unless a single document has more."""


class Domain:
    """A model and the documents of one evaluation domain."""

    def __init__(
        self, language_model: LanguageModel, tokens: EvalTokens, forward_tokens: int, progress: Progress | None
    ) -> None:
        self.model, self.device = language_model.model, language_model.device
        self.documents = len(tokens.ids)
        self.passes = 0
        """How often the documents will be run in all, for the progress report."""
        self._tokens, self._forward_tokens, self._progress = tokens, forward_tokens, progress
        self._special = special_mask(tokens.ids, language_model.tokenizer)
        self._run = 0

    def batches(self) -> Iterator[DocumentBatch]:
        """All documents, in smaller batches where the vocabulary is large.

        Also where no logits are wanted: the batches, and with them the last bits of an SAE's numbers, must not depend
        on whether another SAE of the pass is spliced in.
        """
        vocabulary = self.model.config.get_text_config().vocab_size
        limit = min(self._forward_tokens, _LOGITS_PER_FORWARD // vocabulary)
        for batch in document_batches(self._tokens, self._special, limit, self.device):
            yield batch
            self._run += len(batch.documents)
            if self._progress is not None:
                self._progress(self._run, self.passes * self.documents)

    def means(self, sites: Collection[Site]) -> dict[Site, Array]:
        """Mean hidden state [d] float64 of all ordinary tokens at each site."""
        sums = {site: DocumentSums(self.documents) for site in sites}
        for batch in self.batches() if sites else ():
            states = hidden_states(self.model, sites, batch.ids, batch.real.long())
            for site in sites:
                ordinary = states[site][batch.ordinary].float()
                sums[site].put(batch, tokens=batch.ordinary.sum(1), states=vector_sums(ordinary, batch))
        return {site: _mean(total["states"], total["tokens"]) for site, total in sums.items()}


def _mean(vectors: Tensor, tokens: Tensor) -> Array:
    # In document order, so that it does not depend on the batches.
    mean: Array = (vectors.sum(0) / tokens.sum().clamp_min(1)).numpy()
    return mean
