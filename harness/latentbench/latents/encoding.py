"""Documents with the codes of their tokens, batch by batch: what every study of latents reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.activations.batching import TOKENS_PER_FORWARD
from latentbench.activations.massive import NormLimit, OrdinaryTokens
from latentbench.activations.tokens import EvalTokens
from latentbench.core.progress import Progress
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.reconstruction.documents import DocumentBatch, DocumentStates, Domain
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.study.context import Content

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel
    from latentbench.study.context import StageContext


@dataclass(frozen=True)
class Encoded:
    """Whole documents and the codes of their N ordinary tokens, in row-major order."""

    batch: DocumentBatch
    """`ordinary` without the tokens that are massive where the SAE reads."""
    words: Tensor
    """[B, T] bool: the tokens that are ordinary by their ids, massive ones included: what a reader of the text sees."""
    states: Tensor
    """[N, d_in] float32 hidden states."""
    codes: Codes
    budget: int | None = None
    """Active latents per token that the SAE was limited to; None: as trained."""

    def codes_of_words(self) -> Codes:
        """The codes of all tokens of `words`; nothing is active on massive ones."""
        return self.codes.spread(self.batch.ordinary[self.words])


@torch.no_grad()
def encoded(
    model: LanguageModel,
    sae: SparseAutoencoder,
    site: Site,
    tokens: EvalTokens,
    *,
    rule: TokenRule = EVERY_TOKEN,
    budgets: Sequence[int | None] = (None,),
    forward_tokens: int = TOKENS_PER_FORWARD,
    progress: Progress | None = None,
    states: DocumentStates | None = None,
    limit: NormLimit | None = None,
) -> Iterator[Encoded]:
    """All documents of a domain in batches of at most `forward_tokens` padded tokens, longest documents first.

    The model reads a batch once, where `states` does not give what it would say, and the SAE once per budget, in their order;
    `rule` says which tokens it is given, and `limit`, where it is known, how long their states may be. As in the pass that all
    SAEs share, the SAE is moved to the model's device and put into evaluation mode.
    """
    sae.to(model.device).eval()
    domain = Domain(model, tokens, forward_tokens, progress, rule, states)
    domain.passes = 1
    counted = OrdinaryTokens(limits=domain.limits([site]) if limit is None else {site: limit})

    def read(whole: DocumentBatch) -> tuple[DocumentBatch, DocumentBatch, Tensor]:
        found = domain.states.read(whole, [site])[site]
        batch = whole.at(site, found, counted)
        return whole, batch, found[batch.ordinary].float()

    for whole, batch, x in domain.run(read):
        for budget in budgets:
            yield Encoded(batch, whole.ordinary, x, sae.encode(x, budget), budget)


def encoded_domain(
    context: StageContext, domain: str, budgets: Sequence[int | None] = (None,), progress: Progress | None = None
) -> Iterator[Encoded]:
    """`encoded` of the cell's one SAE on an evaluation domain: the model is not run for what the store has."""
    model, sae, site = context.model(), context.sae, next(iter(context.saes()))
    tokens, rule = context.tokens(domain), context.experiment.token_rule
    states, limit = context.states(domain, [site]), _limit(context, tokens, site)
    return encoded(
        *(model, sae, site, tokens), rule=rule, budgets=budgets, progress=progress, states=states, limit=limit
    )


def _limit(context: StageContext, tokens: EvalTokens, site: Site) -> NormLimit | None:
    """How long a hidden state of the documents may be: measured once for all SAEs and studies at a site."""
    rule = context.experiment.token_rule
    if rule.multiple is None:
        return None
    read = hashlib.sha256(tokens.ids.numpy().tobytes() + tokens.lengths.numpy().tobytes()).hexdigest()
    payload = {"tokens": read, "site": site.plain(), "rule": rule.plain()}

    def measured() -> Content:
        domain = Domain(context.model(), tokens, TOKENS_PER_FORWARD, rule=rule)
        return Content(meta=domain.limits([site])[site].plain())

    return NormLimit.from_plain(context.shared("norm_limit", payload, measured).meta)
