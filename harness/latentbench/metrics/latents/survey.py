"""One domain's pass for the `latents` study and for reports: usage and top examples of every latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens
from latentbench.measure.domain import Progress
from latentbench.metrics.latents.encoding import encoded
from latentbench.metrics.latents.examples import TopExamples, Windows
from latentbench.metrics.latents.usage import Usage
from latentbench.sae.base import SparseAutoencoder
from latentbench.section import Json

if TYPE_CHECKING:
    from latentbench_adapters.protocols import LanguageModel

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


def survey(
    model: LanguageModel,
    sae: SparseAutoencoder,
    site: Site,
    tokens: EvalTokens,
    examples: int,
    window: int,
    top: int,
    progress: Progress | None = None,
) -> Survey:
    """Runs the documents once. `examples` windows of `window` tokens and the `top` tokens are kept per latent."""
    usage = Usage(sae.width, model.model.config.get_text_config().vocab_size, model.device)
    best = TopExamples(sae.width, examples, window, model.device)
    for part in encoded(model, sae, site, tokens, progress=progress):
        usage.add(part)
        best.add(part)
    return _survey(usage, best.found, top)


def _survey(usage: Usage, examples: Windows, top: int) -> Survey:
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
