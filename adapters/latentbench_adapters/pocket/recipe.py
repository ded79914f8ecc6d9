"""What the shipped weights were made with: sizes, optimiser, mixture and curriculum."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from latentbench_adapters.pocket import text

VOCABULARY: Final = 2048
BOS, PAD = "<|bos|>", "<|pad|>"
BOS_ID, PAD_ID = 0, 1
CONTEXT: Final = 512
MODEL: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "tie_word_embeddings": True,
}
TOKENIZER_DOCUMENTS: Final = 12_000  # documents of the late mixture that the vocabulary is fitted on


@dataclass(frozen=True)
class Recipe:
    """Training settings; a step is one optimiser update on ``batch_tokens`` tokens."""

    steps: int = 1700
    batch_tokens: int = 8192
    learning_rate: float = 2e-3
    warmup: int = 50
    plan: int = 2500  # length of the cosine that the learning rate follows up to step ``turn``
    turn: int = 600  # from here a shorter cosine leads from the rate reached to ``final_share`` at ``steps``
    final_share: float = 0.05  # of the learning rate
    early: int = 600  # steps with the early mixture
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    row: int = 256  # tokens per row; every fourth step uses rows of the full context instead


# Shares of documents; a text has about twice the tokens of a word problem or drill, so that in tokens the early
# part is 45 % drills, 10 % problems, 45 % text, and the late part 10 % drills, 50 % problems, 40 % text.
# Single operations come first: a model that cannot add cannot profit from worked steps.
EARLY: Final = {"drills": 0.60, "problems": 0.10}
LATE: Final = {"drills": 0.12, "problems": 0.63}
DOMAIN_WEIGHTS: Final = {"general": 4, "chemistry": 2, "law": 2, "medicine": 2, "code": 1}


def row_length(recipe: Recipe, step: int) -> int:
    """Tokens per row at ``step``: mostly short rows (cheaper), and the full context often enough to learn it."""
    return CONTEXT if step % 4 == 3 else recipe.row


def shares(recipe: Recipe, step: int) -> dict[str, float]:
    """Shares of drills and word problems at ``step``; the rest is text."""
    return EARLY if step < recipe.early else LATE


class Mixture:
    """Training documents whose kinds are drawn by a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._drills = text.drills("train", seed)
        self._problems = text.word_problems("train", seed)
        self._texts: dict[str, Iterator[str]] = {d: text.documents(d, "train", seed) for d in DOMAIN_WEIGHTS}

    def draw(self, drills: float, problems: float) -> str:
        """One document: a drill, a word problem, or a document of one of the text domains."""
        kind = self._rng.random()
        if kind < drills:
            return next(self._drills)
        if kind < drills + problems:
            return next(self._problems)
        domain = self._rng.choices(list(DOMAIN_WEIGHTS), list(DOMAIN_WEIGHTS.values()))[0]
        return next(self._texts[domain])
