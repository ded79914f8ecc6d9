"""What can be said of a flow's options before anything is trained: without torch, from the spec alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.spec.experiment import Experiment

_NO_THRESHOLDS = frozenset(
    {"topk", "hierarchical_topk", "random_decoder", "untrained", "standard", "gated", "kron", "pca", "identity", "mean"}
)
"""Variants whose latents are chosen by rank, by a threshold of zero, by a gate, or by what is no linear encoder."""


def foldable(section: Any) -> bool:
    """Whether an SAE section may have a positive threshold for every latent; loaded ones tell only when they are read."""
    by_rank = getattr(section, "selection", None) in ("topk", "hierarchical")
    return getattr(section, "variant", None) not in _NO_THRESHOLDS and not by_rank


def unfoldable(experiment: Experiment) -> Iterator[str]:
    """Every kind of SAE of the experiment whose thresholds cannot be folded, with where it stands."""
    said: dict[str, str] = {}
    for site in experiment.sites:
        section = experiment.section_at(site)
        if not foldable(section):
            said.setdefault(str(getattr(section, "variant", "")), str(site))
    for variant, place in said.items():
        yield f"the {variant} SAE at {place} has no positive thresholds to fold; use mean activations (`activation`) instead"
