"""What the lexical judge learns from examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentbench.autointerp.lexical_judge import LexicalJudge
from latentbench.autointerp.windows import Window


def learned(active: list[str], inactive: list[str]) -> Any:
    """A rule from texts in which the word in capitals is active."""
    windows = []
    for number, text in enumerate(active):
        words = text.split()
        strengths = tuple(float(word.isupper()) for word in words)
        windows.append(Window(tuple(word.lower() for word in words), strengths, number, 0))
    return LexicalJudge().learn(windows, [tuple(text.split()) for text in inactive])


FILLER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def texts(insert: str, count: int = 12) -> list[str]:
    return [" ".join([*FILLER[i % 7 : i % 7 + 3], insert, FILLER[(i + 4) % 10]]) for i in range(count)]


def test_it_learns_a_token() -> None:
    rule = learned(texts("ACID"), texts("salt"))
    assert rule.explanation == "Fires on 'acid' (12 of 12)."
    yes, no = rule.detect([("two", "acid", "nine"), ("two", "salt", "nine")])
    assert yes > 0.9 > 0.1 > no
    right, wrong = rule.fuzz(
        [(("two", "acid", "nine"), (False, True, False)), (("two", "acid", "nine"), (True, False, False))]
    )
    assert right > 0.5 > wrong


def test_it_learns_a_token_in_a_context() -> None:
    rule = learned(texts("strong ACID"), texts("weak acid"))
    yes, no = rule.detect([("strong", "acid", "nine"), ("weak", "acid", "nine")])
    assert yes > 0.5 > no
    assert "strong" in rule.explanation


def test_it_says_so_when_nothing_stands_out() -> None:
    rule = learned(["A b c d"] * 3, ["a b c d"] * 30)
    assert isinstance(rule.explanation, str)
    assert all(0 <= p <= 1 for p in rule.detect([("a",), (), ("zzz",)]))
    assert rule.fuzz([((), ())]) == pytest.approx([rule.fuzz([(("q",), (False,))])[0]])


def test_it_is_deterministic_in_another_process() -> None:
    code = (
        "from latentbench.autointerp.lexical_judge import LexicalJudge; from types import SimpleNamespace as W;"
        "on = [W(tokens=('a', f'b{i % 3}', 'c', f'd{i}'), activations=(0., 1., i % 2, 0.)) for i in range(12)];"
        "rule = LexicalJudge().learn(on, [('x', f'b{i}', 'c', 'a') for i in range(12)]);"
        "print(rule.explanation, rule.detect([('a', 'b1', 'c'), ('x', 'b1', 'd4')]))"
    )
    root = Path(__file__).parents[2]
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        found.add(subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1
