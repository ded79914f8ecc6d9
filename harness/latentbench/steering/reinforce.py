"""Reinforcement learning of vectors and adapters: the data, the curve, the held-out selection and the checkpoints.

What step s does is a function of the weights, the optimizer's averages, and seeds derived from s: a training that was
killed goes on from its last checkpoint exactly as if nothing had happened. The steps themselves are TRL's, see
`latentbench.steering.trl_steps`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentbench.canonical import seed_of
from latentbench.errors import InvalidInput
from latentbench.lab import Lab
from latentbench.section import Json
from latentbench.steering.intervention import Layout
from latentbench.steering.making import read_problems, residual_norms
from latentbench.steering.rewards import grader
from latentbench.steering.rollouts import Sampling, answers, check_prompts
from latentbench.steering.state import Progress
from latentbench.steering.trainable import Trainable
from latentbench.steering.trl_steps import Run, StepStatistics, take_steps
from latentbench_adapters.protocols import LanguageModel, Problem

if TYPE_CHECKING:
    from latentbench.steering.options.trained import ReinforcedMethod


@dataclass(frozen=True)
class Trained:
    """The outcome."""

    best: Mapping[str, Tensor]
    norms: Mapping[int, float]
    """Mean residual norms of the trained layers, on training prompts."""
    progress: Progress
    base_accuracy: float | None
    """On the selection problems, before training, greedily."""

    def meta(self) -> dict[str, Json]:
        """For `Content.meta` and reports. `curve`: per step the mean reward (±1), mean length in tokens, share of
        truncated answers, share of prompts whose answers were not all alike, policy loss, gradient norm, norm of all
        weights, and the selection accuracy where it was measured."""
        return {
            "curve": self.progress.curve,
            "best_step": self.progress.best_step,
            "selection_accuracy": self.progress.best_accuracy,
            "selection_base_accuracy": self.base_accuracy,
        }


def reinforced(method: ReinforcedMethod, lab: Lab, trainable: Trainable) -> Trained:
    """Trains, from the last checkpoint in `lab.scratch` if there is one, and returns the best weights.

    Raises InvalidInput where there are too few problems, or one that the model cannot read or has no room to answer.
    """
    lm = lab.model()
    selection, training = _problems(method, lab)
    check_prompts(lm, sorted({problem.prompt for problem in (*selection, *training)}))  # now, not in the middle
    norms = residual_norms(lm, trainable.layers, [problem.prompt for problem in training])
    progress, layout = Progress.load(lab.scratch), Layout()
    base = _accuracy(method, lm, selection, layout)
    with trainable.installed(lm, layout) as parameters, _preserved_random_state():
        optimizer = _optimizer(method, trainable, parameters, norms, lm)
        if progress.step:
            progress.give(parameters, optimizer)
        else:
            progress.take(parameters, optimizer)

        def after(statistics: StepStatistics) -> None:
            """Notes what a step did, compares checkpoints, and makes the step durable."""
            progress.step += 1
            progress.take(parameters, optimizer)
            measured = progress.step % method.select_every == 0 or progress.step == method.steps
            accuracy = _accuracy(method, lm, selection, layout) if measured else None
            if _better(progress, accuracy, measured):
                progress.best, progress.best_step = dict(progress.weights), progress.step
                progress.best_accuracy = accuracy
            norm = float(torch.stack([weight.double().square().sum() for weight in progress.weights.values()]).sum())
            progress.curve.append(statistics.entry(progress.step, norm**0.5, accuracy))
            progress.save(lab.scratch)
            lab.progress(progress.step, method.steps)

        if progress.step < method.steps:
            take_steps(Run(method, lm, parameters, optimizer, training, layout, progress.step, lab.seed("rl")), after)
    return Trained(progress.best, norms, progress, base)


def _problems(method: ReinforcedMethod, lab: Lab) -> tuple[list[Problem], list[Problem]]:
    """Selection problems, and the problems of all steps in order."""
    needed = method.steps * method.prompts
    found = read_problems(method.problems, lab.roots, method.selection + needed)
    selection, rest = found[: method.selection], found[method.selection :]
    if len(selection) < method.selection or len(rest) < method.prompts:
        raise InvalidInput(
            f"{method.method}: the problems are {len(found)}, but {method.selection} are held out for selection and "
            f"every step needs {method.prompts} others"
        )
    order = chain.from_iterable(_epochs(rest, lab.seed("rl", "order")))
    return selection, list(islice(order, needed))


def _epochs(problems: Sequence[Problem], seed: int) -> Iterator[list[Problem]]:
    """The problems in a new order, again and again."""
    epoch = 0
    while True:
        yield random.Random(seed_of(seed, epoch)).sample(problems, len(problems))
        epoch += 1


def _accuracy(method: ReinforcedMethod, lm: LanguageModel, problems: Sequence[Problem], layout: Layout) -> float | None:
    """Share of problems answered right, greedily; by the true answer also where the reward is random."""
    if not problems:
        return None
    right = grader("number" if method.reward == "random" else method.reward)
    sampling = Sampling(method.max_new_tokens, 0.0, method.stop)
    written = answers(lm, [p.prompt for p in problems], sampling, layout=layout, rows=min(256, method.rollout_batch))
    return sum(right(a.text, p.answer) for a, p in zip(written, problems, strict=True)) / len(problems)


def _better(progress: Progress, accuracy: float | None, measured: bool) -> bool:
    if accuracy is None:
        return measured
    return progress.best_accuracy is None or accuracy > progress.best_accuracy


def _optimizer(
    method: ReinforcedMethod,
    trainable: Trainable,
    parameters: Mapping[str, nn.Parameter],
    norms: Mapping[int, float],
    lm: LanguageModel,
) -> torch.optim.AdamW:
    options = method.optimizer
    rates = dict.fromkeys(parameters, options.learning_rate)
    if options.unit == "residual":
        width = next(iter(parameters.values())).shape[-1]
        units = {layer: norm / width**0.5 for layer, norm in norms.items()}
        rates |= trainable.learning_rates(options.learning_rate, units)
    return torch.optim.AdamW(
        [{"params": [parameter], "lr": rates[name]} for name, parameter in parameters.items()],
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Whatever draws or seeds inside, the global generators are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
