"""Scores from 0 to 2 of texts that were written about a concept: by a classifier and the unsteered model, or by a judge.

The formulas stand in steering_metric.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentbench.activations.vocabulary import padding_of
from latentbench.autointerp.ratings import ratings
from latentbench.concepts.texts import Contrast, right_padded
from latentbench.core.protocols import Judge, LanguageModel
from latentbench.interventions.generation import prompt_ids
from latentbench.statistics.arrays import Array

if TYPE_CHECKING:
    from latentbench.study.context import StageContext

TOP = 2
_ROWS = 16
_OPENING = 4
"""Tokens of a text of people that stand for its opening."""
_CHARACTERS = 16
"""Of a token, at most, where texts are cut to some tokens."""
_WORDS = r"\w+|[^\w\s]"
"""What is counted: words, and every other sign by itself."""


@dataclass(frozen=True)
class ConceptClassifier:
    """Logistic regression with balanced classes on TF-IDF of words and pairs of words."""

    pipeline: Any

    @staticmethod
    def trained(contrast: Contrast) -> ConceptClassifier:
        """From texts as long as those that are to be judged."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        counts = TfidfVectorizer(token_pattern=_WORDS, ngram_range=(1, 2), sublinear_tf=True)
        regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
        return ConceptClassifier(make_pipeline(counts, regression).fit(contrast.texts, contrast.labels))

    def probabilities(self, texts: Sequence[str]) -> Array:
        """[texts] P(concept | text)."""
        found: Array = self.pipeline.predict_proba(list(texts))[:, 1]
        return found

    def accuracy(self, contrast: Contrast) -> float:
        """Share of texts given their own label, both labels weighing alike."""
        right = (self.probabilities(contrast.texts) > 0.5) == contrast.labels
        return float((right[contrast.labels].mean() + right[~contrast.labels].mean()) / 2)


def cut(contrast: Contrast, lm: LanguageModel, tokens: int) -> Contrast:
    """The texts as far as their first tokens reach."""

    def beginnings(texts: Sequence[str]) -> tuple[str, ...]:
        tokenizer: Any = lm.tokenizer
        # Longer tokens are rare, so that a long text need not be tokenised whole; what it is cut to stays its beginning.
        short = [text[: _CHARACTERS * tokens] for text in texts]
        ids = tokenizer(short, add_special_tokens=False)["input_ids"]
        return tuple(tokenizer.batch_decode([row[:tokens] for row in ids], skip_special_tokens=True))

    return Contrast(beginnings(contrast.positive), beginnings(contrast.negative))


@torch.no_grad()
def mean_losses(lm: LanguageModel, openings: Sequence[str], written: Sequence[Sequence[int]]) -> Array:
    """[texts] mean negative log-likelihood, in nats per token, of ids written after openings, under the model as it is."""
    pairs = list(zip(prompt_ids(lm, openings), written, strict=True))
    found = []
    for first in range(0, len(pairs), _ROWS):
        part = pairs[first : first + _ROWS]
        ids, real = right_padded([[*opening, *text] for opening, text in part], padding_of(lm), lm.device)
        logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        for row, (opening, text) in enumerate(part):
            told = slice(len(opening) - 1, len(opening) + len(text) - 1)
            wanted = torch.tensor(list(text), device=lm.device)
            found.append(float(torch.nn.functional.cross_entropy(logits[row, told].float(), wanted)))
    return np.array(found, dtype=np.float64)


def people_loss(lm: LanguageModel, texts: Sequence[str], tokens: int) -> float:
    """Mean of `mean_losses` of what people wrote: `tokens` tokens behind each text's first ones."""
    tokenizer: Any = lm.tokenizer
    short = [text[: _CHARACTERS * (tokens + _OPENING)] for text in texts]
    rows = [row for row in tokenizer(short, add_special_tokens=False)["input_ids"] if len(row) > _OPENING]
    openings = tokenizer.batch_decode([row[:_OPENING] for row in rows])
    return float(mean_losses(lm, openings, [row[_OPENING : _OPENING + tokens] for row in rows]).mean())


def distinct_pairs(written: Sequence[Sequence[int]]) -> Array:
    """[texts] share of pairs of neighbouring tokens that differ from all others of the text; 1 where there is no pair."""
    pairs = [list(pairwise(row)) for row in written]
    return np.array([len(set(found)) / len(found) if found else 1.0 for found in pairs])


def fluency(losses: Array, people: float, distinct: Array) -> Array:
    """[texts] 2 · min(1, exp(ℓ₀ − ℓ)) · u, ℓ₀ being the loss of what `people` write."""
    found: Array = TOP * np.exp(np.minimum(0.0, people - losses)) * distinct
    return found


def harmonic_mean(*scores: Array) -> Array:
    """[texts] n / Σ 1/sᵢ of scores of at least 0; 0 where one is 0."""
    stacked = np.stack(scores)
    with np.errstate(divide="ignore"):
        found: Array = len(scores) / (1 / stacked).sum(0)
    return found


QUESTIONS = {
    "concept": "How much of this concept is in the text: {about}? 0 means none, 1 means somewhat, 2 means clearly.",
    "instruction": "Does the text go on from its opening, which is: {opening}? 0 means not at all, 1 means partly, 2 means fully.",
    "fluency": "How fluent is the text, whatever it is about? 0 means broken, 1 means readable but awkward, 2 means natural.",
}
INSTRUCTION = (
    "You rate short texts written by a language model. Answer with one whole number from 0 to 2 and nothing else."
)


def judged(
    openings: Sequence[str], texts: Sequence[str], about: str, judge: Judge, context: StageContext
) -> dict[str, Array]:
    """[texts] 0…2 by `judged_concept`, `judged_instruction`, `judged_fluency` and their harmonic mean `judged_score`.

    What the judge gave no number for counts as 0. Raises NotAvailable when the judge is gone.
    """
    scores = {}
    for name, question in QUESTIONS.items():
        asked = [question.format(about=about, opening=opening) for opening in openings]
        given = ratings(texts, asked, INSTRUCTION, TOP, judge, context.roots, context.cache)
        scores[name] = TOP * np.nan_to_num(given)
    made = {f"judged_{name}": values for name, values in scores.items()}
    return made | {"judged_score": harmonic_mean(*scores.values())}
