"""Multi-step word problems with verifiable answers, and single-operation drills."""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = (
    "Tom",
    "Ann",
    "Max",
    "Lily",
    "Ben",
    "Sara",
    "Omar",
    "Mia",
    "Leo",
    "Nina",
    "Paul",
    "Ruth",
    "Ivan",
    "Cleo",
    "Hugo",
    "Tara",
)
THINGS = (
    "apples",
    "pens",
    "coins",
    "books",
    "cards",
    "shells",
    "stamps",
    "eggs",
    "beads",
    "kites",
    "plums",
    "rings",
)
GAINS = (("finds {} more", "Finds {} more"), ("buys {} more", "Buys {} more"), ("gets {} more", "Gets {} more"))
LOSSES = (("gives away {}", "Gives away {}"), ("loses {}", "Loses {}"), ("sells {}", "Sells {}"))
LEAD = " To find out, go step by step."
DIRECT_SHARE = 0.65  # most answers are direct, so that greedy decoding answers directly by default
LOWEST, HIGHEST = 1, 99  # every running total
SMALLEST, LARGEST = 2, 20  # every operand


@dataclass(frozen=True)
class WordProblem:
    """A word problem: the prompt, its two possible continuations, and the number both end in."""

    question: str
    direct: str
    worked: str
    answer: int


def problem(rng: random.Random) -> WordProblem:
    """Three or four additions and subtractions; running totals in 1..99, operands in 2..20."""
    name, thing, start = rng.choice(NAMES), rng.choice(THINGS), rng.randint(5, 80)
    asked, worked, total = [f"{name} has {start} {thing}."], [f"{LEAD} Has {start}."], start
    for _ in range(rng.randint(3, 4)):
        sign, operand = _operation(rng, total)
        said, restated = rng.choice(GAINS if sign > 0 else LOSSES)
        result = total + sign * operand
        asked.append(f"{name} {said.format(operand)}.")
        # The operand is said in words again before it is used: copying first is what makes the step learnable.
        worked.append(f"{restated.format(operand)}: {total} {'+' if sign > 0 else '-'} {operand} = {result}.")
        total = result
    question = f"Question: {' '.join(asked)} How many {thing} does {name} have now?\nAnswer:"
    return WordProblem(question, f" {total}.", f"{' '.join(worked)} So the answer is {total}.", total)


def _operation(rng: random.Random, total: int) -> tuple[int, int]:
    """A sign and an operand that keep the running total in range."""
    sign = rng.choice((1, -1))
    room = HIGHEST - total if sign > 0 else total - LOWEST
    if room < SMALLEST:
        sign, room = -sign, LARGEST
    return sign, rng.randint(SMALLEST, min(LARGEST, room))


def word_problem(rng: random.Random) -> str:
    """A problem with its answer as training text: direct in about 65 % of documents, worked in the rest."""
    drawn = problem(rng)
    return drawn.question + (drawn.direct if rng.random() < DIRECT_SHARE else drawn.worked)


def drill(rng: random.Random) -> str:
    """Six to ten single operations in the format of a worked step; results in 0..99."""
    return "Practice: " + " ".join(_single(rng) for _ in range(rng.randint(6, 10)))


def _single(rng: random.Random) -> str:
    operand = rng.randint(SMALLEST, LARGEST)
    if rng.random() < 0.5:
        left = rng.randint(0, HIGHEST - operand)
        return f"{left} + {operand} = {left + operand}."
    left = rng.randint(operand, HIGHEST)
    return f"{left} - {operand} = {left - operand}."


def document(rng: random.Random) -> str:
    """One arithmetic document: five word problems in six, else a drill."""
    return word_problem(rng) if rng.random() < 5 / 6 else drill(rng)
