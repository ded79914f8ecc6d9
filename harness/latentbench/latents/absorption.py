"""Feature absorption on the first-letter task (arXiv 2409.14507; projections instead of ablations as in 2503.09532).

A latent that should fire on every word with an initial letter does not fire on some of them, because a latent of the
word itself has taken the letter's direction over. On the hidden states of the model's own single-token words, behind a
short prefix, for each letter ℓ:

* p_ℓ: unit direction of a logistic regression "starts with ℓ"; a letter counts if its held-out F1 is `min_f1` or more;
* M_ℓ: main latents: the first k by absolute difference of means, k grown as long as the F1 of a regression on them grows
  by more than `split_gain`; `absorption.splits` = mean of |M_ℓ|;
* for each held-out word with ℓ that p_ℓ gets right, with hidden state x, mean x⁻ of words without ℓ, activations a_i and
  decoder rows d_i: c_i = a_i ⟨d_i, p_ℓ⟩, needed = ⟨x − x⁻, p_ℓ⟩,
  main = Σ_{i ∈ M_ℓ} max(c_i, 0), absorbed = Σ of the 3 largest positive c_i with i ∉ M_ℓ and cos(d_i, p_ℓ) ≥ 0.1.

| number | formula, mean over those words |
| --- | --- |
| `absorption.fraction` | absorbed / (absorbed + main) if main < needed, else 0 |
| `absorption.full` | 1 if no main latent is active and the largest of those c_i ≥ 0.4 · needed, else 0 |

The numbers are null, with the reason, where fewer than `min_letters` letters can be read from the model: then there is
nothing to absorb. This is not the protocol of SAEBench, whose scores are not comparable with these. Version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.core.spec_model import Json
from latentbench.core.text import byte_size
from latentbench.metrics.base import Display, Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

DOMAIN = "first_letter"
"""The task, as a column group of its own."""


def _of_words(name: str) -> Estimator:
    return Estimator(
        f"absorption.{name}", 1, "fraction", False, (f"absorption.{name}", "absorption.words"), ratio, units="words"
    )


NUMBERS = (_of_words("fraction"), _of_words("full"))


class Absorption(Study):
    """How much of a first letter's direction latents of single words have taken over."""

    implementation: ClassVar[str] = "latentbench.latents.first_letter:measure_absorption"
    displays: ClassVar[Mapping[str, Display]] = {"absorption.fraction": Display("Absorption", 80)}

    metric: Literal["absorption"] = "absorption"
    prefix: Annotated[str, Field(max_length=200)] = "The word is"
    """Text in front of each word, so that no word stands at the start, where hidden states are unusual."""
    words: PositiveInt = 6000
    """Most words used."""
    min_f1: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Held-out F1 from which on a letter counts as readable."""
    min_letters: Annotated[int, Field(ge=1, le=26)] = 20
    """Fewest readable letters."""
    split_gain: Annotated[float, Field(ge=0, le=1)] = 0.03
    """F1 that one more main latent must add."""

    def numbers(self) -> tuple[Estimator, ...]:
        return NUMBERS

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        facts = experiment.model.facts(roots)
        if facts is None:
            return None
        most = byte_size(self.words * facts.d_model * 4)
        site = experiment.sites[0]
        return (
            f"reads the states of single words at {site}, at most {most}: computed and stored once for all SAEs there"
        )

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        return {DOMAIN: {"layer": str(experiment.sites[0]), **self.plain()}}
