"""The passes over a domain's documents: what both share (the SAE, the texts, the two sides, the windows drawn beforehand), and the first.

The first pass counts how often, how strongly and in how many windows every latent fires. The second is in
harness/latentbench/autointerp/collection.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from latentbench.activations.massive import named_ids, named_mask
from latentbench.activations.tokens import EvalTokens, real_mask, special_mask
from latentbench.autointerp.definition import ScoringProtocol
from latentbench.autointerp.sampling import (
    TEST,
    TRAIN,
    DrawnWindows,
    FiringWindows,
    Floats,
    Integers,
    random_windows,
    sides,
)
from latentbench.autointerp.windows import TokenTexts, Window
from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.core.sites import Site
from latentbench.core.token_rule import TokenRule
from latentbench.latents.encoding import encoded_domain
from latentbench.reconstruction.documents import DocumentBatch
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.study.context import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def places_in_batch(batch: DocumentBatch) -> tuple[Tensor, Tensor]:
    """Of the batch's N ordinary tokens: row in the batch [N], and number among the row's ordinary tokens [N]."""
    order = batch.ordinary.cumsum(1) - 1
    return batch.rows, order[batch.ordinary]


def watched(codes: Codes, column_of: Tensor, columns: int) -> Tensor:
    """[N, columns] absolute activations of some latents only; `column_of` [width] is -1 for the others."""
    column = column_of[codes.indices]
    values = codes.values.abs().float() * (column >= 0)
    out = values.new_zeros(len(values), columns + 1)  # the last column takes what is not watched
    out.scatter_add_(1, column.where(column >= 0, torch.full_like(column, columns)), values)
    return out[:, :columns]


def by_document(values: Tensor, batch: DocumentBatch, window: int) -> Tensor:
    """[B, T, C] of values [N, C]: ordinary tokens side by side, zeros behind; T is a multiple of `window`."""
    rows, order = places_in_batch(batch)
    longest = int(order.max()) + 1 if len(order) else 1
    out = values.new_zeros(len(batch.documents), longest, values.shape[1])
    out[rows, order] = values
    return pad(out, (0, 0, 0, -longest % window))


def cut(values: Tensor, row: Tensor, start: Tensor, window: int) -> Tensor:
    """[M, window, C] windows of `values` [B, T, C] that start at `start` [M] in row `row` [M]."""
    return values[row[:, None], start[:, None] + torch.arange(window, device=values.device)]


class DocumentTexts:
    """Tokens of the documents that are neither padding nor special nor named by the spec.

    Massive ones are among them: a reader of the text sees them, and no latent is active on them.
    """

    def __init__(self, tokens: EvalTokens, texts: TokenTexts, excluded: NDArray[np.bool_]) -> None:
        self._ids, self._texts = tokens.ids.numpy(), texts
        self._ordinary = real_mask(tokens.lengths, tokens.ids.shape[1]).numpy() & ~excluded
        self.lengths: Integers = self._ordinary.sum(1).astype(np.int64)
        """[documents] numbers of ordinary tokens."""

    @staticmethod
    def of(tokens: EvalTokens, tokenizer: PreTrainedTokenizerBase, rule: TokenRule) -> DocumentTexts:
        """The texts of evaluation documents."""
        excluded = special_mask(tokens.ids, tokenizer) | named_mask(tokens.ids, named_ids(rule, tokenizer))
        return DocumentTexts(tokens, TokenTexts(tokenizer), excluded.numpy())

    def tokens(self, document: int, start: int, window: int) -> tuple[str, ...]:
        """The texts of at most `window` ordinary tokens, one by one."""
        ids = self._ids[document][self._ordinary[document]][start : start + window]
        return tuple(self._texts[token] for token in ids.tolist())

    def windows(self, found: FiringWindows) -> list[Window]:
        """Windows in which a latent fires."""
        parts = zip(found.document.tolist(), found.start.tolist(), found.activations, strict=True)
        return [self._window(document, start, activations.tolist()) for document, start, activations in parts]

    def inactive(self, drawn: DrawnWindows, chosen: Integers, window: int) -> list[Window]:
        """Windows without the latent, of those drawn beforehand."""
        silent = [0.0] * window
        return [self._window(int(drawn.document[i]), int(drawn.start[i]), silent) for i in chosen]

    def _window(self, document: int, start: int, activations: list[float]) -> Window:
        tokens = self.tokens(document, start, len(activations))
        return Window(tokens, tuple(activations[: len(tokens)]), document, start)


Budget = int | None
CodesConsumer = Callable[[Budget, DocumentBatch, Codes], None]

PASSES = 2

_DRAWN = 2048
"""Windows per side that inactive ones are taken from."""


@dataclass(frozen=True)
class EvaluationSetup:
    """One SAE on one domain. All but `context` and `sae` follows from the tokens, the protocol and the seed."""

    context: StageContext
    site: Site
    sae: SparseAutoencoder
    protocol: ScoringProtocol
    seed: int
    domain: str
    tokens: EvalTokens
    texts: DocumentTexts
    sides: Integers
    """[documents] 0 (train) or 1 (test)."""
    drawn: DrawnWindows
    """Windows of both sides, drawn before anything is known of activations."""

    @staticmethod
    def of(context: StageContext, protocol: ScoringProtocol, domain: str) -> EvaluationSetup:
        """Raises InvalidInput unless the cell has exactly one SAE."""
        sae, site = context.sae, next(iter(context.saes()))
        seed, tokens = context.seed("autointerp"), context.tokens(domain)
        texts = DocumentTexts.of(tokens, context.tokenizer(), context.experiment.token_rule)
        # By what is one unit: a text and its copy on two sides would be explained from and asked about.
        halves = sides(tokens.units.shared(tokens.digests), seed)
        drawn = _drawn(texts.lengths, halves, protocol.window, seed)
        return EvaluationSetup(context, site, sae, protocol, seed, domain, tokens, texts, halves, drawn)

    @property
    def ordinary_tokens(self) -> int:
        """Of all documents."""
        return int(self.texts.lengths.sum())

    def each_batch(self, done: int, budgets: Sequence[Budget], take: CodesConsumer) -> None:
        """One pass over the documents: the model once per batch, the SAE once per budget. `done` passes came before."""
        progress = partial(self.context.progress, part=f"reading, pass {done + 1} of {PASSES}")
        for part in encoded_domain(self.context, self.domain, budgets, progress):
            # Windows were cut by ids alone, before the model was run, so massive tokens keep their places in them.
            take(part.budget, replace(part.batch, ordinary=part.words), _checked(part.codes_of_words()))


def _drawn(lengths: Integers, halves: Integers, window: int, seed: int) -> DrawnWindows:
    drawn = [
        random_windows(lengths, halves == side, window, _DRAWN, seed_of(seed, "places", side)) for side in (TRAIN, TEST)
    ]
    return DrawnWindows(np.concatenate([p.document for p in drawn]), np.concatenate([p.start for p in drawn]))


def _checked(codes: Codes) -> Codes:
    if not codes.values.isfinite().all():
        raise InvalidInput("autointerp: the SAE has activations that are not finite numbers")
    return codes


@dataclass(frozen=True)
class FiringCounts:
    """What the first pass found at one budget."""

    firing: Integers
    """[width] tokens on which each latent fires."""
    maximum: Floats
    """[width] largest absolute activation."""
    segments: Integers
    """[2, width] segments of `window` tokens, on either side, in which the latent fires at least once."""

    def eligible(self, explain: int, test: int) -> np.ndarray:
        """[width] bool: enough windows on both sides."""
        enough: np.ndarray = (self.segments[0] >= explain) & (self.segments[1] >= test)
        return enough


class FiringCounter:
    """Counts, batch by batch; nothing larger than the codes themselves and a few numbers per latent is held."""

    def __init__(self, width: int, sides: Integers, window: int) -> None:
        self._width, self._sides, self._window = width, torch.from_numpy(sides), window
        self._firing = torch.zeros(width, dtype=torch.int64)
        self._maximum = torch.zeros(width)
        self._segments = torch.zeros(2 * width, dtype=torch.int64)

    def add(self, batch: DocumentBatch, codes: Codes) -> None:
        """Takes the codes of a batch's ordinary tokens."""
        active = codes.values != 0
        latent, strength = codes.indices[active].cpu(), codes.values[active].abs().float().cpu()
        self._firing += torch.bincount(latent, minlength=self._width)
        self._maximum.scatter_reduce_(0, latent, strength, "amax")
        rows, order = (place.cpu()[:, None].expand(active.shape)[active.cpu()] for place in places_in_batch(batch))
        self._count_segments(latent, rows, order // self._window, batch.documents)

    def _count_segments(self, latent: Tensor, row: Tensor, segment: Tensor, documents: Tensor) -> None:
        per_row = int(segment.max()) + 1 if len(segment) else 1
        # One number for each latent in each segment, so that firing twice in one counts once.
        distinct = torch.unique((row * per_row + segment) * self._width + latent)
        side = self._sides[documents[distinct // self._width // per_row]]
        self._segments += torch.bincount(side * self._width + distinct % self._width, minlength=2 * self._width)

    def finished(self) -> FiringCounts:
        """The counts."""
        return FiringCounts(self._firing.numpy(), self._maximum.numpy(), self._segments.view(2, -1).numpy())
