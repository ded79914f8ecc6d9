"""Continuous batching: the tokens are those without a cache, drawn from the model's distribution, whatever is written beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from latentbench.activations import fitting
from latentbench.core.errors import CellFailed
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.continuous_steps import continuous_steps
from latentbench.interventions.drawing import drawn
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Layout, Scope
from latentbench.interventions.rollouts import Answer, Sampling, answers
from latentbench.interventions.row_cache import Columns, closed_up
from latentbench.interventions.vectors import SteeringVectors
from latentbench.interventions.writing_ways import continuous_way, rollout_way
from tests.support.hybrids import KEYS_AND_VALUES, LAYERS, WIDTH, hybrid
from tests.support.steering import language_model

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["w3 w4 w5", "w9", "w10 w11", "w12 w13 w14 w15", "w30", "w31 w32", "w40 w41 w42"]
NEW = 12


def written(lm: LanguageModel, temperature: float = 1.0, rows: int = 256, layout: Layout | None = None) -> list[Answer]:
    sampling = Sampling(NEW, temperature, ("w7",), continuous=True)
    generator = torch.Generator().manual_seed(4)
    return answers(lm, PROMPTS, sampling, samples=3, generator=generator, rows=rows, layout=layout)


def steering(scope: Scope) -> VectorInjection:
    generator = torch.Generator().manual_seed(1)
    return VectorInjection(
        SteeringVectors({layer: torch.randn(WIDTH, generator=generator) for layer in (0, LAYERS - 1)}), 0.7, scope
    )


def test_each_model_is_written_with_as_it_allows() -> None:
    found = {name: continuous_way(hybrid(name)) for name in (*KEYS_AND_VALUES, "mamba")}
    # A sliding window counts columns, which shared prompts do not have; a state-space model keeps other things.
    shared = dict.fromkeys(("llama", "gpt2", "mixtral"), "shared")
    assert found == {**shared, "gemma2": "continuous", "minimax": None, "mamba": None}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("rows", [3, 7, 256])
def test_greedy_tokens_are_those_of_batches(name: str, rows: int) -> None:
    lm = hybrid(name)
    plain = answers(lm, PROMPTS, Sampling(NEW, 0.0, ("w7",)), samples=3)
    assert written(lm, 0.0, rows) == plain


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_an_answer_does_not_depend_on_what_it_is_written_beside(name: str) -> None:
    lm = hybrid(name)
    expected = written(lm)
    assert len({answer.text for answer in expected}) > len(PROMPTS)
    assert len({len(answer.ids) for answer in expected}) > 3
    for rows in (3, 7):
        assert written(lm, rows=rows) == expected


def test_a_window_is_of_the_rows_own_tokens() -> None:
    """Rows that came later, beside longer ones, past the window's length."""
    lm = hybrid("gemma2")
    window = lm.model.config.get_text_config().sliding_window
    lm.model.config.get_text_config().sliding_window = 4
    try:
        for module in lm.model.modules():
            if getattr(module, "sliding_window", None) is not None:
                module.sliding_window = 4
        expected = answers(lm, PROMPTS, Sampling(NEW), samples=2)
        assert answers(lm, PROMPTS, Sampling(NEW, continuous=True), samples=2, rows=4) == expected
    finally:
        lm.model.config.get_text_config().sliding_window = window


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("scope", ["all", "generated", "first", "prompt"])
def test_interventions_see_the_same_tokens(name: str, scope: Scope) -> None:
    lm, plain, new = hybrid(name), Layout(), Layout()
    with steering(scope).applied(lm, plain) as before:
        expected = answers(lm, PROMPTS, Sampling(NEW), samples=1, layout=plain, rows=1)
    with steering(scope).applied(lm, new) as after:
        assert answers(lm, PROMPTS, Sampling(NEW, continuous=True), samples=1, layout=new, rows=4) == expected
    assert (after.tokens, after.steered, after.first_position, after.last_position) == (
        *(before.tokens, before.steered, before.first_position, before.last_position),
    )
    assert after.relative_size == pytest.approx(before.relative_size, rel=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_ids_in_the_cache_are_told_to_hooks(shared: bool) -> None:
    """Conditions on the text read `Layout.earlier` beside the mask."""
    lm, layout = hybrid("llama"), Layout()
    texts: list[tuple[int, ...]] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
        if layout.earlier is not None:
            ids = torch.cat([layout.earlier, ids], 1)
            texts.extend(tuple(row[real].tolist()) for row, real in zip(ids, mask, strict=True))

    prompts, over = prompt_ids(lm, PROMPTS), [False] * 14
    rows: dict[int, list[int]] = {number: [] for number in range(14)}
    handle = lm.model.register_forward_pre_hook(watch, with_kwargs=True)
    limits: Any = {"places": 6, "samples": 2, "layout": layout, "shared": shared}
    for numbers, tokens in continuous_steps(lm, prompts, lambda logits, _: logits.topk(2)[1][:, 1:], over, **limits):
        for row, token in zip(numbers, tokens, strict=True):
            rows[row].append(token)
            over[row] = len(rows[row]) == 3 + row % 4
    handle.remove()
    expected = {(*prompts[row // 2], *made[:n]) for row, made in rows.items() for n in range(1, len(made))}
    assert set(texts) == expected


# Gemma 2 masks by a number that only float32 holds, and the experts' product is not there in float64.
@pytest.mark.parametrize(
    ("name", "dtype", "off"),
    [(name, torch.float64, 1e-9) for name in ("llama", "gpt2")]
    + [(name, torch.float32, 1e-4) for name in ("gemma2", "mixtral")],
)
def test_logits_are_those_of_passes_without_a_cache(name: str, dtype: torch.dtype, off: float) -> None:
    lm = hybrid(name, dtype)
    kept: dict[int, list[Tensor]] = {}
    prompts, over = prompt_ids(lm, PROMPTS), [False] * 21
    made: dict[int, list[int]] = {number: [] for number in range(21)}

    def draw(logits: Tensor, rows: Any) -> Tensor:
        for row, own in zip(rows, logits, strict=True):
            kept.setdefault(row, []).append(own)
        return drawn(logits, 1.0, torch.tensor([(row * 0.37 + len(made[row]) * 0.61) % 1 for row in rows]).double())

    limits: Any = {"places": 9, "samples": 3, "layout": Layout(), "shared": continuous_way(lm) == "shared"}
    for rows, tokens in continuous_steps(lm, prompts, draw, over, **limits):
        for row, token in zip(rows, tokens, strict=True):
            made[row].append(token)
            over[row] = len(made[row]) == 2 + row % 5 * 3
    for row, tokens in made.items():
        ids = torch.tensor([[*prompts[row // 3], *tokens[:-1]]])
        whole = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompts[row // 3]) - 1 :]
        torch.testing.assert_close(torch.stack(kept[row]), whole, rtol=off, atol=off)


# -- what is drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [3, 256, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_number_finds_the_word_whose_share_holds_it(words: int, temperature: float) -> None:
    """The definition in float64: the first word up to which the probabilities add up to more than the number."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, words, generator=generator)
    logits[:, 1] = -torch.inf
    numbers = torch.rand(400, generator=generator, dtype=torch.float64)
    cumulated = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    found = drawn(logits, temperature, numbers)[:, 0]
    upper = cumulated.gather(1, found[:, None])[:, 0]
    lower = upper - torch.softmax(logits.double() / temperature, -1).gather(1, found[:, None])[:, 0]
    assert ((lower - 1e-6 <= numbers) & (numbers <= upper + 1e-6)).all()
    assert (found != 1).all()


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_no_number_finds_a_word_that_cannot_be(number: float) -> None:
    logits = torch.full((3, 700), -torch.inf)
    logits[:, [5, 300, 400]] = torch.tensor([1.0, 2.0, 3.0])
    found = drawn(logits, 1.0, torch.full((3,), number, dtype=torch.float64))[:, 0]
    assert found.tolist() == [5 if not number else 400] * 3


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(CellFailed, match="not all numbers"):
        drawn(torch.full((1, 8), torch.nan), 1.0, torch.zeros(1, dtype=torch.float64))


def test_answers_have_the_models_distribution() -> None:
    """Frequencies of all answers of two tokens against their exact probabilities, of both ways of writing."""
    lm = language_model("llama")
    for parameter in lm.model.parameters():
        parameter.data.mul_(0.5)
    head: Any = lm.model.get_output_embeddings()
    likely = torch.arange(8, 12)
    with torch.no_grad():
        head.weight.data = head.weight.data.clone()
        head.weight.data[[i for i in range(len(head.weight)) if i not in likely]] = 0
        bias = torch.full((len(head.weight),), -1e4, dtype=torch.float64)
        bias[likely] = 0
        head.bias = torch.nn.Parameter(bias, requires_grad=False)
    (prompt,) = prompt_ids(lm, ["w3 w4"])
    pairs = list(product(likely.tolist(), repeat=2))
    expected = [math.exp(_log_probability(lm, prompt, pair)) for pair in pairs]
    assert sum(expected) == pytest.approx(1)
    for continuous in (False, True):
        made = answers(
            lm,
            ["w3 w4"],
            Sampling(2, 1.0, continuous=continuous),
            samples=4000,
            generator=torch.Generator().manual_seed(0),
        )
        counts = [sum(answer.ids == list(pair) for answer in made) for pair in pairs]
        assert sum(counts) == 4000
        assert chisquare(counts, [4000 * p / sum(expected) for p in expected]).pvalue > 1e-3


def _log_probability(lm: LanguageModel, prompt: list[int], tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *tokens]])
    logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits.double(), -1)[range(len(tokens)), list(tokens)].sum())


# -- memory --------------------------------------------------------------------------------------------------------


@contextmanager
def exhausted(lm: LanguageModel, most: int, late: int) -> Iterator[list[int]]:
    """Memory for a pass over `most` rows, once `late` passes have been made."""
    rows: list[int] = []

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > most and len(rows) > late:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = lm.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("late", [0, 5])
def test_answers_survive_memory_that_runs_out(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting.gc, "collect", lambda: None)
    lm = hybrid("llama")
    expected = written(lm)
    with exhausted(lm, 6, late) as rows:
        assert written(lm) == expected
    assert max(rows) > 6
    with exhausted(lm, 0, 0), pytest.raises(CellFailed, match="memory does not suffice for one text at a time"):
        written(lm)


def test_the_model_is_afterwards_as_it_was() -> None:
    lm = hybrid("llama")
    continuous_way(lm), rollout_way(lm)
    before = lm.model.config._attn_implementation
    with exhausted(lm, 0, 3), pytest.raises(CellFailed):
        written(lm)
    assert lm.model.config._attn_implementation == before == "sdpa"


# -- the cache -----------------------------------------------------------------------------------------------------


def test_the_last_rows_close_up_the_holes() -> None:
    assert closed_up([1, 3], 6) == [0, 4, 2, 5]
    assert closed_up([5], 6) == [0, 1, 2, 3, 4]
    assert closed_up([0, 1], 2) == []
    assert closed_up([], 2) == [0, 1]


def test_columns_keep_what_rows_hold() -> None:
    """Against plain lists, over many comings and goings."""
    generator, rows = torch.Generator().manual_seed(0), list[list[float]]()
    columns, number = Columns([torch.zeros(0, 1, 0, 1)], 4), 0.0
    for turn in range(200):
        if len(rows) < 3 or turn % 17 == 0:
            width = int(torch.randint(1, 9, (), generator=generator))
            length = int(torch.randint(1, width + 1, (), generator=generator))
            new = torch.arange(number, number + width)
            columns.admit([new[None, None, :, None]], [length])
            rows.append(new[width - length :].tolist())
            number += width
        columns.open()
        columns.write(0, torch.arange(number, number + len(rows))[:, None, None])
        columns.close()
        for place, row in enumerate(rows):
            row.append(number + place)
        number += len(rows)
        gone = [place for place in range(len(rows)) if torch.rand((), generator=generator) < 0.08]
        kept = closed_up(gone, len(rows))
        columns.keep(kept)
        rows = [rows[place] for place in kept]
        held = zip(columns.part(0)[:, 0, :, 0], columns.mask(), strict=True)
        assert [part[real].tolist() for part, real in held] == rows
