"""Reinforcement learning of vectors and adapters: what is trained, the data, the curve, the held-out selection and the checkpoints.

What step s does is a function of the weights, the optimizer's averages, and seeds derived from s: a training that was
killed goes on from its last checkpoint exactly as if nothing had happened. A checkpoint is one safetensors file, so that
all of it appears at once; no pickle. What is trained (vectors, or an adapter) is installed on the model for a while, then
gone. The steps themselves are TRL's, see `latentbench.steering.rl_steps`.

`train_vectors` and `train_lora` are what the methods of `latentbench.steering.optimised` name as their implementation.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.core.progress import Count
from latentbench.core.protocols import LanguageModel, Problem
from latentbench.core.sites import OUTPUT, Place
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import check_prompts
from latentbench.interventions.injection import injecting
from latentbench.interventions.intervention import Layout, Scope
from latentbench.interventions.lora import trainable_lora
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.writing_ways import check_trainable_rollouts
from latentbench.steering.build import content_of, layers_of, residual_norms, width_of
from latentbench.steering.grading import grader, read_problems
from latentbench.steering.optimised import LoraMethod, ReinforcedMethod, RlMethod
from latentbench.steering.rl_steps import RlRun, StepStatistics, take_steps
from latentbench.store.files import write_bytes
from latentbench.study.context import Content, StageContext

Parameters = Mapping[str, nn.Parameter]


def train_vectors(method: RlMethod, context: StageContext) -> Content:
    """The vectors of the best checkpoint, and the training curve. Raises what `train_by_rl` raises."""
    layers = layers_of(method, context.model())
    if method.rank is None:
        trained = train_by_rl(method, context, TrainableVectors(layers, method.scope, method.place))
        vectors = {int(name.removeprefix(_LAYER)): tensor for name, tensor in trained.best.items()}
    else:
        seed = context.seed("steering", "shared rank")
        subspace = TrainableSubspace(layers, method.scope, method.rank, seed, method.place)
        trained = train_by_rl(method, context, subspace)
        product = trained.best["A"] @ trained.best["B"]
        vectors = {
            layer: row.clone() for layer, row in zip(layers, product, strict=True)
        }  # files want no shared memory
    return content_of(vectors, trained.norms, place=method.place, **trained.meta())


def train_lora(method: LoraMethod, context: StageContext) -> Content:
    """The adapter's weights of the best checkpoint, and the training curve. Raises what `train_by_rl` raises."""
    layers, seed = layers_of(method, context.model()), context.seed("steering", "lora")
    trained = train_by_rl(method, context, TrainableLora(layers, method.rank, seed))
    return Content(trained.best, {**trained.meta(), "layers": list(layers)})


_LAYER = "layer_"
"""Begins the name of a vector among the parameters; a dot, as in files, is not allowed in a module's names."""


class Trainable(ABC):
    """Parameters that change a model while they are installed."""

    layers: tuple[int, ...]
    place: Place = OUTPUT
    """Which hidden state of these blocks is changed."""

    @abstractmethod
    def installed(self, lm: LanguageModel, layout: Layout) -> Any:
        """A context that yields the parameters by name; the model's own weights stay frozen."""

    def learning_rates(self, rate: float, units: Mapping[int, float]) -> dict[str, float]:
        """The learning rate of every parameter that has one of its own; `units` are per layer."""
        return {}


class TrainableVectors(Trainable):
    """One vector per layer, from zero, in float32."""

    def __init__(self, layers: tuple[int, ...], scope: Scope, place: Place = OUTPUT) -> None:
        self.layers, self._scope, self.place = layers, scope, place

    @contextmanager
    def installed(self, lm: LanguageModel, layout: Layout) -> Iterator[Parameters]:
        """The vectors are a child of the model, so that trainers find them, and hooks add them."""
        # In float32 whatever the model computes in: in bfloat16 a step of 0.03 rounds away on a coordinate of 8 or more.
        width, model = width_of(lm.model), lm.model
        vectors = {layer: nn.Parameter(torch.zeros(width, device=lm.device)) for layer in self.layers}
        named = {f"{_LAYER}{layer}": vector for layer, vector in vectors.items()}
        model.add_module("steering", nn.ParameterDict(named))
        try:
            # Idle: where all steps were taken before a kill, the model does not run again.
            with injecting(model, vectors, self._scope, layout, place=self.place, idle=True):
                yield named
        finally:
            del model.steering

    def learning_rates(self, rate: float, units: Mapping[int, float]) -> dict[str, float]:
        return {f"{_LAYER}{layer}": rate * units[layer] for layer in self.layers}


@dataclass(frozen=True)
class SharedVector:
    """The vector A_l B [d] of one layer, of factors A [layers, r] and B [r, d] that all layers share."""

    a: Tensor
    row: int
    b: Tensor

    def to(self, dtype: torch.dtype) -> Tensor:
        """The vector as the hook that adds it asks for it: made anew in every pass, so that gradients reach the factors."""
        return (self.a[self.row] @ self.b).to(dtype)


class TrainableSubspace(Trainable):
    """One vector per layer, all in a subspace of `rank` dimensions: S = A B, A random and B zero, in float32."""

    def __init__(self, layers: tuple[int, ...], scope: Scope, rank: int, seed: int, place: Place = OUTPUT) -> None:
        self.layers, self._scope, self._rank, self._seed, self.place = layers, scope, rank, seed, place

    @contextmanager
    def installed(self, lm: LanguageModel, layout: Layout) -> Iterator[Parameters]:
        """The factors are a child of the model, so that trainers find them, and hooks add their products."""
        # Drawn on the CPU, so that devices train from the same start. Kaiming's uniform with a = √5 is ±1/√r for r columns.
        drawn = torch.rand(len(self.layers), self._rank, generator=torch.Generator().manual_seed(self._seed))
        model, zeros = lm.model, torch.zeros(self._rank, width_of(lm.model))
        factors = {"A": (2 * drawn - 1) / self._rank**0.5, "B": zeros}
        named = {name: nn.Parameter(factor.to(lm.device)) for name, factor in factors.items()}
        model.add_module("steering", nn.ParameterDict(named))
        try:
            shared: dict[int, Any] = {
                layer: SharedVector(named["A"], row, named["B"]) for row, layer in enumerate(self.layers)
            }
            with injecting(model, shared, self._scope, layout, place=self.place, idle=True):
                yield named
        finally:
            del model.steering


class TrainableLora(Trainable):
    """peft's LoRA layers on down-projections: A random and B zero, so that the adapter starts as no change at all."""

    def __init__(self, layers: tuple[int, ...], rank: int, seed: int) -> None:
        self.layers, self._rank, self._seed = layers, rank, seed

    def installed(self, lm: LanguageModel, layout: Layout) -> AbstractContextManager[Parameters]:
        return trainable_lora(lm, self.layers, self._rank, self._seed)


CHECKPOINT_FILE = "reinforce.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state by the names of torch's AdamW."""


@dataclass
class RlCheckpoint:
    """Everything that the next step depends on, apart from the method's options and the stage's seed."""

    step: int = 0
    """Steps done."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Adam's running averages by parameter; the number of steps is `step` for all."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the checkpoint that is kept."""
    best_step: int = 0
    best_accuracy: float | None = None
    curve: list[Json] = field(default_factory=list)
    """One entry per step, see `RlResult.meta`."""

    def take(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Copies the weights and the optimizer's averages."""
        self.weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        self.moments = {}
        for name, parameter in parameters.items():
            state = optimizer.state.get(parameter, {})
            if state:
                self.moments[name] = {moment: state[moment].detach().cpu().clone() for moment in _MOMENTS}

    def give(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Puts the weights and the averages back."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                parameters[name].copy_(weight)
        for name, moments in self.moments.items():
            parameter = parameters[name]
            restored: dict[str, Any] = {key: moment.to(parameter.device).clone() for key, moment in moments.items()}
            # A tensor on the CPU, as AdamW makes it itself; it corrects the averages' bias, so it must be that of the step.
            optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **restored}

    def save(self, folder: Path) -> None:
        """Replaces the checkpoint in `folder`."""
        tensors = {f"weight/{name}": tensor for name, tensor in self.weights.items()}
        # safetensors refuses tensors that share memory, which the best weights do when they are those of this step.
        tensors |= {f"best/{name}": tensor.clone() for name, tensor in self.best.items()}
        tensors |= {f"{key}/{name}": t for name, moments in self.moments.items() for key, t in moments.items()}
        numbers = {
            "step": self.step,
            "best_step": self.best_step,
            "best_accuracy": self.best_accuracy,
            "curve": self.curve,
        }
        write_bytes(folder / CHECKPOINT_FILE, save(tensors, {"state": json.dumps(numbers, allow_nan=False)}))

    @classmethod
    def load(cls, folder: Path) -> RlCheckpoint:
        """The checkpoint in `folder`, or a fresh start where there is none or it is damaged."""
        try:
            with safe_open(folder / CHECKPOINT_FILE, framework="pt") as file:
                numbers = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return cls()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts.setdefault(kind, {})[rest] = tensor
        moments = {n: {key: parts[key][n] for key in _MOMENTS} for n in parts.get(_MOMENTS[0], {})}
        return cls(weights=parts.get("weight", {}), moments=moments, best=parts.get("best", {}), **numbers)


@dataclass(frozen=True)
class RlResult:
    """What a training came to."""

    best: Mapping[str, Tensor]
    norms: Mapping[int, float]
    """Mean residual norms of the trained layers, on training prompts."""
    progress: RlCheckpoint
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


def train_by_rl(method: ReinforcedMethod, context: StageContext, trainable: Trainable) -> RlResult:
    """Trains, from the last checkpoint in `context.scratch` if there is one, and returns the best weights.

    Raises InvalidInput where there are too few problems, or one that the model cannot read or has no room to answer.
    """
    lm = context.model()
    selection, training = _problems(method, context)  # of all steps, also of those that a checkpoint has behind it
    # Now, and not by an error in the middle of a training that has run for hours.
    check_trainable_rollouts(lm)
    check_prompts(lm, sorted({problem.prompt for problem in (*selection, *training)}))
    norms = residual_norms(lm, trainable.layers, [problem.prompt for problem in training], trainable.place)
    progress, layout = RlCheckpoint.load(context.scratch), Layout()
    base = _accuracy(method, lm, selection, layout)
    with trainable.installed(lm, layout) as parameters, _preserved_random_state():
        optimizer = _optimizer(method, trainable, parameters, norms)
        if progress.step:
            progress.give(parameters, optimizer)
        first, tell = progress.step, partial(_tell, method, context)
        tell(progress, first)

        def after(statistics: StepStatistics) -> None:
            """Notes what a step did, compares checkpoints, and makes the step durable."""
            progress.step += 1
            progress.take(parameters, optimizer)
            # On problems that no step trains on: the reward of the last steps would favour whichever got the easier ones.
            measured = progress.step % method.select_every == 0 or progress.step == method.steps
            accuracy = _accuracy(method, lm, selection, layout) if measured else None
            if measured and (accuracy is None or progress.best_accuracy is None or accuracy > progress.best_accuracy):
                progress.best, progress.best_step = dict(progress.weights), progress.step
                progress.best_accuracy = accuracy
            norm = float(torch.stack([weight.double().square().sum() for weight in progress.weights.values()]).sum())
            progress.curve.append(statistics.entry(progress.step, norm**0.5, accuracy))
            progress.save(context.scratch)  # before progress is reported: what was seen to be done is never done again
            tell(progress, first)

        if progress.step < method.steps:
            take_steps(
                RlRun(method, lm, parameters, optimizer, training, layout, progress.step, context.seed("rl")), after
            )
    return RlResult(progress.best, norms, progress, base)


def _tell(method: ReinforcedMethod, context: StageContext, progress: RlCheckpoint, first: int) -> None:
    """Says how far the training is, `first` steps of which an earlier run has taken."""
    each = method.prompts * method.samples
    told = {name: progress.curve[-1][name] for name in ("reward",) if progress.curve}
    rollouts = Count(each * progress.step, each * method.steps, "rollouts")
    context.progress(progress.step, method.steps, before=first, pace=rollouts, **told)


def _problems(method: ReinforcedMethod, context: StageContext) -> tuple[list[Problem], list[Problem]]:
    """Selection problems, and the problems of all steps in order."""
    needed = method.steps * method.prompts
    # No more than could be used, and the held-out ones first: which they are does not depend on the number of steps.
    found = read_problems(method.problems, context, method.selection + needed)
    selection, rest = found[: method.selection], found[method.selection :]
    if len(selection) < method.selection or len(rest) < method.prompts:
        raise InvalidInput(
            f"{method.method}: the problems are {len(found)}, but {method.selection} are held out for selection and "
            f"every step needs {method.prompts} others"
        )
    order = chain.from_iterable(_epochs(rest, context.seed("rl", "order")))
    return selection, list(islice(order, needed))


def _epochs(problems: Sequence[Problem], seed: int) -> Iterator[list[Problem]]:
    """The problems in a new order, again and again."""
    epoch = 0
    while True:
        yield random.Random(seed_of(seed, epoch)).sample(problems, len(problems))
        epoch += 1


def _accuracy(method: ReinforcedMethod, lm: LanguageModel, problems: Sequence[Problem], layout: Layout) -> float | None:
    """Share of problems answered right, greedily; by the true answer also where the reward is random. None without any."""
    if not problems:
        return None
    right = grader("number" if method.reward == "random" else method.reward)
    sampling = Sampling(method.max_new_tokens, 0.0, method.stop, method.rollouts == "continuous")
    written = answers(lm, [p.prompt for p in problems], sampling, layout=layout, rows=min(256, method.rollout_batch))
    return sum(right(a.text, p.answer) for a, p in zip(written, problems, strict=True)) / len(problems)


def _optimizer(
    method: ReinforcedMethod,
    trainable: Trainable,
    parameters: Mapping[str, nn.Parameter],
    norms: Mapping[int, float],
) -> torch.optim.AdamW:
    """AdamW with a learning rate for every parameter; warm-up is the schedule's."""
    options = method.optimizer
    rates = dict.fromkeys(parameters, options.learning_rate)
    if options.unit == "residual":
        # Adam moves every coordinate by about its learning rate, whatever the gradient's size, so a rate in units of the
        # stream's root mean square moves all layers by the same share of what they carry.
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
    """Whatever draws or seeds inside, the global generators are afterwards as they were.

    TRL seeds all three when it is built, and other stages of the same job run in this process afterwards.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
