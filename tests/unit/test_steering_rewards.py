"""Rewards: the right answer is right however it is written, and nothing else is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.steering.grading import grader, same_boxed, same_last_number, same_mathematics


@pytest.mark.parametrize(
    ("written", "gold", "right"),
    [
        (" 42.", "42", True),
        ("5 + 37 = 42. So the answer is 42.", "42", True),
        ("42 apples, no, 41", "42", False),
        ("1,234", "1234", True),
        ("42.0", "42", True),
        ("0.5", ".5", True),
        ("-3", "-3", True),
        ("10-3", "3", True),
        ("it is -3.", "3", False),
        ("forty-two", "42", False),
        ("", "42", False),
        ("$18", "18", True),
        ("7", "#### 7", True),
        ("4 2", "42", False),
    ],
)
def test_the_last_number_counts(written: str, gold: str, right: bool) -> None:
    assert same_last_number(written, gold) is right


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .,=+\n", max_size=20))
def test_any_integer_is_found_behind_any_words(number: int, words: str) -> None:
    assert same_last_number(f"{words} {number}.", str(number))
    assert not same_last_number(f"{words} {number}.", str(number + 1))


@pytest.mark.parametrize(
    ("written", "gold", "right"),
    [
        (r"so \boxed{42}", "42", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{1} no \boxed{2}", "2", True),
        (r"\boxed{2} no \boxed{1}", "2", False),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", True),
        ("42", "42", False),
        (r"\boxed{", "42", False),
        (r"\boxed{}", "42", False),
    ],
)
def test_boxed_answers_are_compared_as_mathematics(written: str, gold: str, right: bool) -> None:
    assert same_boxed(written, gold) is right


@pytest.mark.parametrize(
    ("written", "gold", "right"),
    [
        (r"so \boxed{27}", "27.0", True),
        ("the answer is 27.", "27", True),
        ("the answer is 27.", "28", False),
        (r"thus $\frac{1}{2(n+1)}$", r"$\frac{1}{2n+2}$", True),
        (r"thus $\frac{1}{2(n+1)}$", r"$\frac{1}{2n}$", False),
        (r"\boxed{(1,2)}", r"First \boxed{3}, then $\boxed{(1,2)}$.", True),
        (r"\boxed{3}", r"First \boxed{3}, then $\boxed{(1,2)}$.", False),
        (r"\boxed{1000}", "1,000", True),
        ("nothing to see", "42", False),
        (r"\boxed{0}", "", False),
    ],
)
def test_answers_anywhere_are_compared_as_mathematics(written: str, gold: str, right: bool) -> None:
    assert same_mathematics(written, gold) is right


def test_mathematics_is_compared_outside_the_main_thread_too() -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(same_mathematics, "the answer is 27.", "27").result()


def test_graders_are_found_by_name() -> None:
    assert (grader("number"), grader("boxed")) == (same_last_number, same_boxed)
