"""Questions with one number as the answer, in five kinds, and the documents of the tasks that ask them.

Small real models answer benchmarks such as GSM8K next to never, so nothing that steering does shows there. These they answer
sometimes: SmolLM2-135M-Instruct, greedily in its chat template, 2 % of the differences, 7 % of the sums and the word problems, and
35 % of the questions for the largest, of which a guess among the three is right in a third.

Every question has its own random generator, seeded from (version, kind, split, seed, index), and a hash of its words in
alphabetical order decides which split may hold it: `train` and `eval` share none, nor 47 + 38 and 38 + 47.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["sum", "difference", "product", "largest", "word_problem"]
Split = Literal["train", "eval"]
VERSION = 1  # part of every seed: raise it whenever any question changes
TEST = 512
"""Questions of each task."""
_EVAL_SHARE = 8
"""One question in eight belongs to the evaluation split."""
_NAMES = ("Tom", "Ann", "Max", "Lily", "Ben", "Sara", "Omar", "Mia", "Leo", "Nina", "Paul", "Ruth")
_THINGS = ("apples", "pens", "coins", "books", "cards", "shells", "stamps", "eggs", "beads", "kites")
_GAINS = ("gets {} more", "buys {} more", "finds {} more")
_LOSSES = ("gives away {}", "loses {}", "sells {}")


@dataclass(frozen=True)
class ArithmeticQuestion:
    """What is asked, without words around it, and the answer."""

    text: str
    answer: int


def questions(kind: Kind, split: Split, seed: int = 0) -> Iterator[ArithmeticQuestion]:
    """Endless questions of a kind, some of them again and again; `train` and `eval` share none."""
    index = 0
    while True:
        name = f"{VERSION}/{kind}/{split}/{seed}/{index}".encode()
        drawn = _WRITERS[kind](random.Random(int.from_bytes(hashlib.sha256(name).digest()[:16], "big")))
        if _belongs_to(drawn.text) == split:
            yield drawn
        index += 1


def documents(kind: Kind, **_: Any) -> dict[str, Dataset]:
    """The test documents of a kind's task as lm-eval takes them: `TEST` different questions, or all there are."""
    from datasets import Dataset

    drawn = {question.text: question.answer for question in islice(questions(kind, "eval"), 4 * TEST)}
    rows = [{"question": text, "answer": str(answer)} for text, answer in islice(drawn.items(), TEST)]
    return {"test": Dataset.from_list(rows)}


def _belongs_to(text: str) -> Split:
    words = " ".join(sorted(re.findall(r"\w+", text)))
    return "eval" if hashlib.sha256(words.encode()).digest()[0] % _EVAL_SHARE == 0 else "train"


def _sum(rng: random.Random) -> ArithmeticQuestion:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return ArithmeticQuestion(f"What is {a} + {b}?", a + b)


def _difference(rng: random.Random) -> ArithmeticQuestion:
    b, a = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    return ArithmeticQuestion(f"What is {a} - {b}?", a - b)


def _product(rng: random.Random) -> ArithmeticQuestion:
    a, b = rng.randint(11, 99), rng.randint(3, 19)
    return ArithmeticQuestion(f"What is {a} times {b}?", a * b)


def _largest(rng: random.Random) -> ArithmeticQuestion:
    a, b, c = rng.sample(range(10, 100), 3)
    return ArithmeticQuestion(f"Which of the numbers {a}, {b} and {c} is the largest?", max(a, b, c))


def _word_problem(rng: random.Random) -> ArithmeticQuestion:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    start, change = rng.randint(10, 50), rng.randint(2, 20)
    gains = change >= start or rng.random() < 0.5
    said = rng.choice(_GAINS if gains else _LOSSES).format(change)
    text = f"{name} has {start} {thing} and {said}. How many {thing} does {name} have now?"
    return ArithmeticQuestion(text, start + change if gains else start - change)


_WRITERS: dict[Kind, Callable[[random.Random], ArithmeticQuestion]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "largest": _largest,
    "word_problem": _word_problem,
}
assert tuple(_WRITERS) == get_args(Kind)
