"""What every latent fires on, and its strongest examples, from one pass over a domain's documents.

Nothing is kept of the codes themselves. Usage takes a few numbers per latent and 16 bytes per distinct pair of latent and token;
examples are the windows of tokens around a latent's peaks, at most one per document: width × examples × window token ids and
activations, whatever the number of documents. The study `latents` (firing.py) and reports read the outcome, a Survey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentbench.core.spec_model import Json
from latentbench.latents.encoding import Encoded, encoded_domain
from latentbench.latents.firing import DENSE, TOP_TOKENS, Latents
from latentbench.sae.autoencoder import Codes
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel
    from latentbench.study.context import StageContext


def measure_latents(study: Latents, context: StageContext) -> Findings:
    """Surveys every domain of the study; the surveys' tensors are kept for reports."""
    domains = study.domains(context.experiment)
    statistics: dict[str, dict[str, Array]] = {}
    tensors: dict[str, Tensor] = {}
    details: dict[str, Json] = {}
    for name in domains:
        parts = encoded_domain(context, name, progress=partial(context.progress, part=name))
        found = survey(parts, context.model(), context.sae.width, study.examples, study.window, TOP_TOKENS)
        statistics[name] = _statistics(found)
        tensors |= {f"{name}/{key}": tensor for key, tensor in found.tensors().items()}
        details[name] = {"tokens": found.tokens, "density_histogram": found.density_histogram()}
    return Findings(statistics=statistics, details={"domains": details}, tensors=tensors)


def _statistics(found: Survey) -> dict[str, Array]:
    """What the numbers of the study sum, per latent; 0 for those that never fire."""
    firing, tokens = found.firing.double().numpy(), max(1, found.tokens)
    alive = firing > 0
    documents = np.maximum(found.documents.numpy(), 1)
    values = {
        "alive": alive,
        "token_entropy": found.entropy.numpy(),
        "multi_token_ratio": found.repeated.numpy() / documents,
        # A latent that never fires gets log10(1) = 0, not −∞.
        "log_density": np.log10(np.where(alive, firing, tokens) / tokens),
        "max_activation": found.largest.double().numpy(),
        "dense_fraction": firing / tokens > DENSE,
    }
    return {f"latents.{name}": value.astype(np.float64) for name, value in values.items()}


@dataclass(frozen=True)
class NonzeroActivations:
    """The E non-zero activations of a batch."""

    latents: Tensor
    """[E] int64."""
    values: Tensor
    """[E]."""
    tokens: Tensor
    """[E] int64: number of the token in 0..N-1."""

    @staticmethod
    def of(codes: Codes) -> NonzeroActivations:
        """Every activation that is not zero, token by token."""
        active = codes.values != 0
        tokens = active.nonzero()[:, 0]
        return NonzeroActivations(codes.indices[active], codes.values[active], tokens)


BINS_PER_OCTAVE = 2
LOWEST, HIGHEST = -12, 12
BINS = BINS_PER_OCTAVE * (HIGHEST - LOWEST)
"""Activations are counted in bins of half a factor of two from 2^-12 to 2^12; what is outside goes to the end bins."""
_PENDING = 1 << 22
"""Pairs that are kept uncounted before they are merged."""


class LatentUsage:
    """Sums per latent over the documents given to `add`."""

    def __init__(self, width: int, vocabulary: int, device: torch.device) -> None:
        self.width = width
        self.tokens = 0
        """Ordinary tokens seen."""
        self.firing = torch.zeros(width, dtype=torch.int64, device=device)
        """[width] tokens on which the latent is active."""
        self.documents = torch.zeros_like(self.firing)
        """[width] documents in which it is active."""
        self.repeated = torch.zeros_like(self.firing)
        """[width] documents in which it is active on two tokens or more."""
        self.largest = torch.zeros(width, device=device)
        """[width] largest absolute activation."""
        self.histogram = torch.zeros(width, BINS, dtype=torch.int64, device=device)
        """[width, BINS] activations by size."""
        self._pairs = PairCounts(vocabulary, device)

    def add(self, part: Encoded) -> None:
        """Counts one batch of whole documents."""
        entries = NonzeroActivations.of(part.codes)
        self.tokens += len(part.states)
        self.firing += torch.bincount(entries.latents, minlength=self.width)
        self.largest.scatter_reduce_(0, entries.latents, entries.values.abs().float(), "amax")
        self._count_documents(entries.latents, part.batch.rows[entries.tokens], len(part.batch.documents))
        place = entries.latents * BINS + activation_bins(entries.values)
        self.histogram += torch.bincount(place, minlength=self.width * BINS).view(self.width, BINS)
        self._pairs.add(entries.latents, part.batch.token_ids[entries.tokens])

    def entropy(self) -> Tensor:
        """[width] float64, bits: H = −Σ_v p_v log2 p_v, where p_v is the share of token v among the latent's
        activations; 0 for a latent that never fires."""
        latents, _, counts = self._pairs.table()
        shares = counts.double() / self.firing[latents]
        terms = torch.zeros(self.width, dtype=torch.float64, device=counts.device)
        return terms.index_add_(0, latents, -shares * shares.log2()).clamp_min(0)

    def top_tokens(self, k: int) -> tuple[Tensor, Tensor]:
        """(token ids [width, k] int32, counts [width, k] int32) most frequent first; count 0 is padding."""
        latents, tokens, counts = self._pairs.table()
        # By count, and then stably by latent: within each latent the most frequent stay first.
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(latents[order], stable=True)]
        rank = rank_in_group(latents[order])
        kept = order[rank < k]
        place = latents[kept], rank[rank < k]
        ids = torch.zeros(self.width, k, dtype=torch.int32, device=counts.device)
        found = torch.zeros_like(ids)
        ids[place], found[place] = tokens[kept].int(), counts[kept].int()
        return ids, found

    def _count_documents(self, latents: Tensor, rows: Tensor, documents: int) -> None:
        groups, counts = torch.unique(latents * documents + rows, return_counts=True)
        owners = groups // documents
        self.documents += torch.bincount(owners, minlength=self.width)
        self.repeated += torch.bincount(owners[counts > 1], minlength=self.width)


class PairCounts:
    """How often each pair of latent and token occurs, as sorted keys: never a [width, vocabulary] table."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)
        self._counts = torch.zeros_like(self._keys)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._held = 0

    def add(self, latents: Tensor, tokens: Tensor) -> None:
        """Counts pairs [E], [E]."""
        keys, counts = torch.unique(latents * self._vocabulary + tokens, return_counts=True)
        self._pending.append((keys, counts))
        self._held += len(keys)
        if self._held > _PENDING:
            self._merge()

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, tokens, counts) [pairs] int64, ordered by latent and token."""
        self._merge()
        return self._keys // self._vocabulary, self._keys % self._vocabulary, self._counts

    def _merge(self) -> None:
        keys = torch.cat([self._keys, *(keys for keys, _ in self._pending)])
        counts = torch.cat([self._counts, *(counts for _, counts in self._pending)])
        self._keys, place = torch.unique(keys, return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, place, counts)
        self._pending, self._held = [], 0


def activation_bins(values: Tensor) -> Tensor:
    """[E] int64: the bin of each activation by its absolute size."""
    octaves = (values.abs().float().log2() - LOWEST) * BINS_PER_OCTAVE
    return octaves.floor().long().clamp(0, BINS - 1)


def rank_in_group(groups: Tensor) -> Tensor:
    """[n] int64: of each element of sorted `groups` [n], how many equal ones precede it."""
    starts = torch.searchsorted(groups, groups)
    return torch.arange(len(groups), device=groups.device) - starts


PADDING = -1


@dataclass(frozen=True)
class Windows:
    """Examples of latents, strongest first; n is the width or any number of latents."""

    peaks: Tensor
    """[n, examples] float32: the activation at the peak; 0 where there is no such example."""
    documents: Tensor
    """[n, examples] int32."""
    starts: Tensor
    """[n, examples] int32: place of the window's first token in its document."""
    ids: Tensor
    """[n, examples, window] int32 token ids; -1 beyond the document's end."""
    activations: Tensor
    """[n, examples, window] float16: the latent's activation at each token."""

    @staticmethod
    def empty(width: int, examples: int, window: int, device: torch.device | None = None) -> Windows:
        """No example yet."""
        return Windows(
            torch.zeros(width, examples, device=device),
            torch.zeros(width, examples, dtype=torch.int32, device=device),
            torch.zeros(width, examples, dtype=torch.int32, device=device),
            torch.full((width, examples, window), PADDING, dtype=torch.int32, device=device),
            torch.zeros(width, examples, window, dtype=torch.float16, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """By field, on the CPU."""
        return {name: tensor.cpu() for name, tensor in vars(self).items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Windows:
        """The inverse of `tensors`."""
        return Windows(**{name: tensors[name] for name in Windows.__dataclass_fields__})

    def of_latents(self, latents: Tensor) -> Windows:
        """Only those of some latents [n]."""
        return Windows(**{name: tensor[latents] for name, tensor in vars(self).items()})


class TopExamples:
    """Keeps the strongest examples of the documents given to `add`; negative activations are counted, but never shown."""

    def __init__(self, width: int, examples: int, window: int, device: torch.device) -> None:
        self.found = Windows.empty(width, examples, window, device)
        self._examples, self._window = examples, window

    def add(self, part: Encoded) -> None:
        """Looks through one batch of whole documents."""
        entries = NonzeroActivations.of(part.codes)
        # Most activations are weaker than what is kept, and are left out before anything is sorted.
        weakest = self.found.peaks[:, -1]
        peaks = document_peaks(entries, part.batch.rows, entries.values > weakest[entries.latents])
        order = torch.argsort(entries.values[peaks], descending=True, stable=True)
        order = order[torch.argsort(entries.latents[peaks][order], stable=True)]
        rank = rank_in_group(entries.latents[peaks][order])
        best = peaks[order][rank < self._examples]
        if len(best):
            self._merge(entries.latents[best], rank[rank < self._examples], self._windows(part, entries, best))

    def _windows(self, part: Encoded, entries: NonzeroActivations, best: Tensor) -> Windows:
        """The windows around the entries `best` [C], each field without the dimension of examples."""
        tokens, latents = entries.tokens[best], entries.latents[best]
        batch = part.batch
        rows, positions, lengths = batch.rows[tokens], batch.positions[tokens], batch.real.sum(1)
        starts = (positions - self._window // 2).clamp(max=lengths[rows] - self._window).clamp_min(0)
        places = starts[:, None] + torch.arange(self._window, device=starts.device)
        inside = places < lengths[rows][:, None]
        places = places.clamp_max(batch.ids.shape[1] - 1)
        ids = batch.ids[rows[:, None], places].masked_fill(~inside, PADDING)
        number = torch.full(batch.ordinary.shape, PADDING, device=tokens.device)
        number[batch.ordinary] = torch.arange(len(part.states), device=tokens.device)
        numbers = number[rows[:, None], places].masked_fill(~inside, PADDING)
        documents = batch.documents.to(rows.device)[rows]
        activations = activations_at(entries, numbers, latents, len(self.found.peaks))
        return Windows(entries.values[best].float(), documents.int(), starts.int(), ids.int(), activations.half())

    def _merge(self, latents: Tensor, rank: Tensor, windows: Windows) -> None:
        """Puts candidate number i of latent `latents[i]` beside what is kept, and keeps the strongest of both."""
        touched, place = torch.unique(latents, return_inverse=True)
        kept = self.found.of_latents(touched)
        fresh = Windows.empty(len(touched), self._examples, self._window, latents.device)
        for name, tensor in vars(windows).items():
            getattr(fresh, name)[place, rank] = tensor
        peaks = torch.cat([kept.peaks, fresh.peaks], 1)
        order = torch.argsort(peaks, dim=1, descending=True, stable=True)[:, : self._examples]
        row = torch.arange(len(touched), device=latents.device)[:, None]
        for name, tensor in vars(self.found).items():
            tensor[touched] = torch.cat([getattr(kept, name), getattr(fresh, name)], 1)[row, order]


def document_peaks(entries: NonzeroActivations, rows: Tensor, wanted: Tensor) -> Tensor:
    """[peaks] int64: of the `wanted` entries, for every latent and document the strongest (the first of equal ones)."""
    chosen = wanted.nonzero().squeeze(1)
    chosen = chosen[torch.argsort(entries.values[chosen], descending=True, stable=True)]
    groups = entries.latents[chosen] * (int(rows.max()) + 1 if len(rows) else 1) + rows[entries.tokens[chosen]]
    order = torch.argsort(groups, stable=True)
    return chosen[order][rank_in_group(groups[order]) == 0]


def activations_at(entries: NonzeroActivations, numbers: Tensor, latents: Tensor, width: int) -> Tensor:
    """[C, window] activations of `latents` [C] at the tokens `numbers` [C, window] of the batch (-1: none)."""
    # Looked up by binary search among the pairs that are not zero, so that nothing dense of the width is made.
    keys, order = (entries.tokens * width + entries.latents).sort()
    wanted = numbers * width + latents[:, None]
    places = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    found = (keys[places] == wanted) & (numbers != PADDING)
    return torch.where(found, entries.values[order][places], 0)


_DECADES = 7
_BINS_PER_DECADE = 4


@dataclass(frozen=True)
class Survey:
    """What is known of every latent on one domain; tensors on the CPU."""

    tokens: int
    """Ordinary tokens of the domain."""
    firing: Tensor
    """[width] int64 tokens on which it is active."""
    documents: Tensor
    """[width] int64 documents in which it is active."""
    repeated: Tensor
    """[width] int64 documents in which it is active twice or more."""
    largest: Tensor
    """[width] float32 largest absolute activation."""
    entropy: Tensor
    """[width] float64 token entropy in bits."""
    histogram: Tensor
    """[width, bins] int32 activations by size; see `usage`."""
    top_tokens: Tensor
    """[width, k] int32 most frequent tokens."""
    top_counts: Tensor
    """[width, k] int32 how often each; 0 is padding."""
    examples: Windows

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for safetensors."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokens", "examples")}
        examples = {f"examples.{name}": tensor for name, tensor in self.examples.tensors().items()}
        return {"tokens": torch.tensor([self.tokens]), **own, **examples}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Survey:
        """The inverse of `tensors`."""
        own = {f.name: tensors[f.name] for f in fields(Survey) if f.name not in ("tokens", "examples")}
        examples = {name.removeprefix("examples."): t for name, t in tensors.items() if name.startswith("examples.")}
        return Survey(tokens=int(tensors["tokens"]), examples=Windows.of(examples), **own)

    def density_histogram(self) -> Json:
        """Latents by log10 of the share of tokens on which they fire: `edges` [bins + 1], `counts` [bins], `dead`."""
        alive = self.firing > 0
        density = (self.firing[alive].double() / max(1, self.tokens)).log10()
        bins = _DECADES * _BINS_PER_DECADE
        place = ((density + _DECADES) * _BINS_PER_DECADE).floor().long().clamp(0, bins - 1)
        edges = [-_DECADES + i / _BINS_PER_DECADE for i in range(bins + 1)]
        counts = torch.bincount(place, minlength=bins).tolist()
        return {"edges": edges, "counts": counts, "dead": int((~alive).sum())}


def survey(parts: Iterable[Encoded], model: LanguageModel, width: int, examples: int, window: int, top: int) -> Survey:
    """Reads the documents once, as an SAE of `width` latents encodes what `model` makes of them.

    `examples` windows of `window` tokens and the `top` tokens are kept per latent.
    """
    usage = LatentUsage(width, model.model.config.get_text_config().vocab_size, model.device)
    best = TopExamples(width, examples, window, model.device)
    for part in parts:
        usage.add(part)
        best.add(part)
    return _survey(usage, best.found, top)


def _survey(usage: LatentUsage, examples: Windows, top: int) -> Survey:
    ids, counts = usage.top_tokens(top)
    return Survey(
        tokens=usage.tokens,
        firing=usage.firing.cpu(),
        documents=usage.documents.cpu(),
        repeated=usage.repeated.cpu(),
        largest=usage.largest.cpu(),
        entropy=usage.entropy().cpu(),
        histogram=usage.histogram.int().cpu(),
        top_tokens=ids.cpu(),
        top_counts=counts.cpu(),
        examples=Windows.of(examples.tensors()),
    )
