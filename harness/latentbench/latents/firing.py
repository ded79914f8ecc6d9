"""What every latent fires on, from one pass over the evaluation documents.

Per latent i with n_i activations on the T ordinary tokens of a domain:

| number | formula, over latents with n_i > 0 |
| --- | --- |
| `latents.token_entropy` | mean of H_i = −Σ_v p_iv log2 p_iv, bits; p_iv: share of token v among the n_i |
| `latents.multi_token_ratio` | mean of r_i = (documents with two or more activations) / (documents with any) |
| `latents.log_density` | mean of log10(n_i / T) |
| `latents.max_activation` | mean of the largest absolute activation |
| `latents.dense_fraction` | share of them with n_i / T > 0.1 |

Entropy and multi-token ratio are the judge-free proxies that arXiv 2505.22255 reports beside its interpretability
scores (which fall with entropy); what a document is follows from the spec's `context`. Small entropy means that a
latent follows single tokens, which is neither good nor bad in itself. Version 2: massive tokens are not counted, version 1 counted them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.metrics.base import Estimator, ratio
from latentbench.study.study import Study

DENSE = 0.1
"""Share of tokens above which a latent that fires is dense."""
TOP_TOKENS = 10
"""Most frequent tokens kept per latent."""


def _of_alive(name: str, unit: str, better: bool | None) -> Estimator:
    return Estimator(
        f"latents.{name}", 2, unit, better, (f"latents.{name}", "latents.alive"), ratio, units="latents", paired=False
    )


NUMBERS = (
    _of_alive("token_entropy", "bits", None),
    _of_alive("multi_token_ratio", "fraction", None),
    _of_alive("log_density", "log10", None),
    _of_alive("max_activation", "activation", None),
    _of_alive("dense_fraction", "fraction", False),
)


class Latents(Study):
    """Token entropy, multi-token ratio, density and top examples of every latent."""

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.latents.survey:measure_latents"
    reads_states: ClassVar[bool] = True

    metric: Literal["latents"] = "latents"
    examples: Annotated[int, Field(ge=1, le=50)] = 6
    """Strongest examples kept per latent and domain, at most one per document."""
    window: Annotated[PositiveInt, Field(ge=4, le=256)] = 32
    """Tokens of an example."""

    def numbers(self) -> tuple[Estimator, ...]:
        return NUMBERS
