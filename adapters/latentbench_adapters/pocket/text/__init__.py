"""Deterministic text: one general domain, four specialised ones, and arithmetic with verifiable answers.

Every document has its own random generator, seeded from (version, domain, split, seed, index), so documents can
be produced in any order and on any machine with the same result.  A hash of the text decides which split may
contain it, so no document is in both splits by construction, not by luck.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from latentbench_adapters.pocket.text import arithmetic, chemistry, code, general, law, medicine
from latentbench_adapters.pocket.text.arithmetic import WordProblem, problem

__all__ = ["DOMAINS", "VERSION", "Split", "WordProblem", "documents", "drills", "problem", "problems", "word_problems"]

Split = Literal["train", "eval"]
VERSION = 1  # part of every seed: raise it whenever any generator's output changes

_WRITERS: dict[str, Callable[[random.Random], str]] = {
    "general": general.document,
    "chemistry": chemistry.document,
    "law": law.document,
    "medicine": medicine.document,
    "code": code.document,
    "arithmetic": arithmetic.document,
}
DOMAINS: tuple[str, ...] = tuple(_WRITERS)
_EVAL_SHARE = 8  # one text in eight belongs to the evaluation split

_T = TypeVar("_T")


def documents(domain: str, split: Split, seed: int = 0) -> Iterator[str]:
    """Endless documents of roughly 60 to 200 tokens each; `train` and `eval` share no text."""
    if domain not in _WRITERS:
        raise ValueError(f"unknown domain {domain!r}; known domains: {', '.join(DOMAINS)}")
    return _stream(domain, split, seed, _WRITERS[domain], _question_or_text)


def problems(split: Split, seed: int = 0) -> Iterator[WordProblem]:
    """Endless word problems; no question of `eval` is in any training text."""
    return _stream("problems", split, seed, problem, lambda drawn: _question_or_text(drawn.question))


def word_problems(split: Split, seed: int = 0) -> Iterator[str]:
    """Endless word problems as text, answered directly in about 65 % of documents and worked in the rest."""
    return _stream("word-problems", split, seed, arithmetic.word_problem, _question_or_text)


def drills(split: Split, seed: int = 0) -> Iterator[str]:
    """Endless drills: several single additions and subtractions per document."""
    return _stream("drills", split, seed, arithmetic.drill, _question_or_text)


def _stream(
    name: str, split: Split, seed: int, write: Callable[[random.Random], _T], identity: Callable[[_T], str]
) -> Iterator[_T]:
    if split not in ("train", "eval"):
        raise ValueError(f"unknown split {split!r}; known splits: train, eval")
    index = 0
    while True:
        drawn = write(_rng(name, split, seed, index))
        if _belongs_to(identity(drawn)) == split:
            yield drawn
        index += 1


def _rng(name: str, split: str, seed: int, index: int) -> random.Random:
    digest = hashlib.sha256(f"{VERSION}/{name}/{split}/{seed}/{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


def _question_or_text(text: str) -> str:
    """What must not cross splits: for a word problem the question alone, however it is answered."""
    return text.partition("\nAnswer:")[0]


def _belongs_to(text: str) -> Split:
    return "eval" if hashlib.sha256(text.encode()).digest()[0] % _EVAL_SHARE == 0 else "train"
