"""The pocket text: deterministic, split cleanly, distinct by domain, and arithmetic that is really right."""

from __future__ import annotations

import ast
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench_adapters.pocket.text import DOMAINS, WordProblem, documents, drills, problem, problems, word_problems
from latentbench_adapters.pocket.text.arithmetic import HIGHEST, LARGEST, LEAD, LOWEST, SMALLEST

seeds = st.integers(min_value=0, max_value=2**64 - 1)
OPERATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
STEP = re.compile(r"(Finds|Buys|Gets|Gives away|Loses|Sells) (\d+)(?: more)?: (\d+) ([+-]) (\d+) = (\d+)\.")
GAIN = ("finds", "buys", "gets")


def from_question(question: str) -> tuple[list[int], list[int]]:
    """Running totals and operands, from the words of the question alone."""
    (start,) = re.findall(r" has (\d+) ", question)
    totals, operands = [int(start)], list[int]()
    for verb, number in re.findall(r" (finds|buys|gets|gives away|loses|sells) (\d+)", question):
        operands.append(int(number))
        totals.append(totals[-1] + int(number) * (1 if verb in GAIN else -1))
    return totals, operands


def words(domain: str, count: int = 400) -> Counter[str]:
    texts = " ".join(islice(documents(domain, "train"), count))
    return Counter(re.findall(r"[a-z]{3,}", texts.lower()))


@given(seeds)
def test_answer_follows_from_the_question(seed: int) -> None:
    drawn = problem(random.Random(seed))
    totals, operands = from_question(drawn.question)
    assert drawn.answer == totals[-1]
    assert len(operands) in (3, 4)
    assert all(LOWEST <= total <= HIGHEST for total in totals)
    assert all(SMALLEST <= operand <= LARGEST for operand in operands)


@given(seeds)
def test_worked_steps_are_right_and_chained(seed: int) -> None:
    drawn = problem(random.Random(seed))
    totals, operands = from_question(drawn.question)
    steps = STEP.findall(drawn.worked)
    assert drawn.worked.startswith(f"{LEAD} Has {totals[0]}. ")
    assert drawn.worked.endswith(f" So the answer is {drawn.answer}.")
    assert len(steps) == len(operands)
    for (_, restated, left, sign, right, result), before, operand, after in zip(
        steps, totals, operands, totals[1:], strict=False
    ):
        assert (int(restated), int(left), int(right), int(result)) == (operand, before, operand, after)
        assert int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


@given(seeds)
def test_problem_is_a_pure_function_of_its_generator(seed: int) -> None:
    drawn = problem(random.Random(seed))
    assert drawn == problem(random.Random(seed))
    assert drawn.question.startswith("Question: ")
    assert drawn.question.endswith("\nAnswer:")
    assert drawn.direct == f" {drawn.answer}."


def test_no_shortcut_to_the_direct_answer() -> None:
    drawn = list(islice(problems("eval"), 2000))
    guesses = {
        "most common answer": Counter(p.answer for p in drawn).most_common(1)[0][1],
        "the start": sum(from_question(p.question)[0][0] == p.answer for p in drawn),
        "any number in the question": sum(str(p.answer) in re.findall(r"\d+", p.question) for p in drawn),
        "all but the last step": sum(from_question(p.question)[0][-2] == p.answer for p in drawn),
    }
    assert guesses.pop("any number in the question") / len(drawn) < 0.15
    assert all(count / len(drawn) < 0.05 for count in guesses.values()), guesses


def test_about_two_thirds_are_answered_directly() -> None:
    drawn = list(islice(word_problems("train"), 3000))
    share = sum(LEAD not in document for document in drawn) / len(drawn)
    assert 0.62 < share < 0.68


def test_drills_are_right_and_in_range() -> None:
    for document in islice(drills("train"), 300):
        found = OPERATION.findall(document)
        assert document.startswith("Practice: ")
        assert 6 <= len(found) <= 10
        for left, sign, right, result in found:
            assert int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
            assert max(int(result), int(left)) <= 99


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_repeat_exactly_and_depend_on_the_seed(domain: str) -> None:
    first = list(islice(documents(domain, "train", seed=3), 20))
    assert first == list(islice(documents(domain, "train", seed=3), 20))
    assert first != list(islice(documents(domain, "train", seed=4), 20))


@pytest.mark.parametrize("domain", DOMAINS)
def test_train_and_eval_share_no_document(domain: str) -> None:
    train = set(islice(documents(domain, "train"), 3000))
    held_out = set(islice(documents(domain, "eval"), 300))
    assert not train & held_out
    assert len(train) > 2990  # and training does not repeat itself


def test_no_evaluated_question_is_in_training_text() -> None:
    seen = {d.partition("\nAnswer:")[0] for d in islice(word_problems("train"), 5000)}
    seen |= {d.partition("\nAnswer:")[0] for d in islice(documents("arithmetic", "train"), 2000)}
    assert not seen & {p.question.removesuffix("\nAnswer:") for p in islice(problems("eval"), 1000)}


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_are_clean_text_of_a_sensible_length(domain: str) -> None:
    for document in islice(documents(domain, "eval", seed=1), 200):
        assert document == document.strip()
        assert 80 <= len(document) <= 1400
        if domain not in ("code", "arithmetic"):
            assert not re.search(r"[\[\]{}|<>]|  ", document), document
            assert not re.search(r"\b[Aa] [aeio][a-z]", document), document
            assert not re.search(r"[a-z][.?!] [a-z]", document), document


def test_code_parses() -> None:
    for document in islice(documents("code", "eval"), 300):
        ast.parse(document)


def test_entities_persist_within_a_document() -> None:
    """Long-range structure: most names of a document are mentioned more than once."""
    repeated = [
        count > 1
        for document in islice(documents("general", "eval"), 200)
        for count in Counter(re.findall(r"(?<=[a-z] )[A-Z][a-z]{2,}", document)).values()
    ]
    assert sum(repeated) / len(repeated) > 0.35


def test_vocabularies_are_distinct() -> None:
    frequent = {domain: {w for w, n in words(domain).items() if n >= 3} for domain in DOMAINS}
    for one, other in combinations(DOMAINS, 2):
        shared = len(frequent[one] & frequent[other]) / min(len(frequent[one]), len(frequent[other]))
        assert shared < 0.35, (one, other, shared)
    for domain in ("general", "chemistry", "law", "medicine"):
        others = set().union(*(frequent[d] for d in DOMAINS if d != domain))
        assert len(frequent[domain] - others) > 250, domain


def test_unknown_names_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ValueError, match="unknown domain 'poetry'; known domains: general"):
        documents("poetry", "train")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        next(problems("test"))  # type: ignore[arg-type]


def test_problem_is_immutable() -> None:
    drawn = problem(random.Random(0))
    assert isinstance(drawn, WordProblem)
    with pytest.raises(AttributeError):
        drawn.answer = 0  # type: ignore[misc]


def test_text_needs_no_torch() -> None:
    code = "import sys, latentbench_adapters.pocket.text; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
