"""Optimiser steps by TRL's GRPOTrainer, set up so that they are those of on-policy RLOO.

* `loss_type="dapo"`: minus Σ A_i Σ_t log π(y_it), divided by all generated tokens of the step; `scale_rewards="none"` and
  `beta=0`: no division by the rewards' deviation, no KL term; one step per batch, so the importance ratio is 1 and nothing
  is clipped.
* TRL subtracts the mean of all G rewards of a prompt, leave-one-out that of the other G − 1: the same but for the factor
  G / (G − 1), with which rewards are multiplied here.
* Rollouts come from `latentbench.interventions.rollouts`. Those without advantage add nothing to the gradient and are
  left out of forward and backward; the others run in pieces of similar length.

With rollouts y_i of a prompt and r_i = ±1, the loss of a step is −Σ_i A_i Σ_t log π(y_it) / Σ_i |y_i| with the leave-one-out
advantage A_i = r_i − Σ_{j≠i} r_j / (G − 1) (RLOO, arXiv 2402.14740); `tests/numerics/test_steering_training.py` replays steps
from this definition.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.vocabulary import padding_of, positions_in
from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import seed_of
from latentbench.core.protocols import LanguageModel, Problem
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.intervention import Layout
from latentbench.interventions.rollouts import Answer, Sampling, answers
from latentbench.steering.grading import grader
from latentbench.steering.optimised import ReinforcedMethod
from latentbench.steering.rl_policy import use_own_logits

_PIECE_TOKENS = 8192
"""Padded tokens per forward pass of a micro-batch: what its logits and activations need of memory grows with them."""


@dataclass(frozen=True)
class RlRun:
    """The steps that are still to be taken."""

    method: ReinforcedMethod
    lm: LanguageModel
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    problems: Sequence[Problem]
    """Those of all steps, in order."""
    layout: Layout
    """Tells the vectors' hooks where prompts end; written before every pass, by whoever runs it."""
    first: int
    """Steps already taken."""
    seed: int
    """All randomness of step s comes from this and s, so that a step does not depend on where the process was started."""


@dataclass
class StepStatistics:
    """What one step saw."""

    rewards: list[float] = field(default_factory=list)
    """±1 per rollout, those of one prompt together."""
    lengths: list[int] = field(default_factory=list)
    """Generated tokens per rollout."""
    truncated: int = 0
    """Rollouts that did not end by themselves."""
    loss: float = 0.0
    gradient_norm: float = 0.0
    samples: int = 1
    """Rollouts per prompt."""

    def entry(self, step: int, norm: float, selection: float | None) -> Json:
        """A line of the training curve."""
        groups = [self.rewards[i : i + self.samples] for i in range(0, len(self.rewards), self.samples)]
        rollouts = max(1, len(self.rewards))
        return {
            "step": step,
            "reward": sum(self.rewards) / rollouts,
            "length": sum(self.lengths) / rollouts,
            "truncated": self.truncated / rollouts,
            "informative": sum(len(set(group)) > 1 for group in groups) / max(1, len(groups)),
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "norm": norm,
            "selection": selection,
        }


def take_steps(run: RlRun, after: Callable[[StepStatistics], None]) -> None:
    """Takes the remaining steps; `after` is called when each is done, with the parameters changed."""
    with _quiet(), _borrowed(run.lm), tempfile.TemporaryDirectory() as folder:
        _trainer(run, after, folder).train()


def _trainer(run: RlRun, after: Callable[[StepStatistics], None], folder: str) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    method, recorder = run.method, _Recorder(run)

    class Trainer(GRPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
            # TRL divides by `num_items_in_batch`, the tokens of all rollouts of the step, which every piece still carries:
            # leaving rows out and cutting columns changes neither the divisor nor the sum.
            parts = []
            for part in informative_pieces(inputs):
                run.layout.prompt_lengths = part["prompt_mask"].sum(1)
                parts.append(super().compute_loss(model, part, *rest, **more))
            # Where all rewards of a prompt agree for every prompt nothing is left, and `backward` needs a graph all the same.
            nothing = torch.stack([parameter.sum() for parameter in run.parameters.values()]).sum() * 0.0
            loss = torch.stack([nothing, *parts]).sum()
            recorder.statistics.loss += float(loss)
            return loss

    class Steps(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            recorder.begin()

        def on_pre_optimizer_step(self, *arguments: Any, **more: Any) -> None:
            recorder.note_gradient()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            after(recorder.finish())

    # A resumed training is a new, shorter one to TRL: it gets what is left of the problems and starts counting at 0.
    left, forward = run.problems[run.first * method.prompts :], run.lm.model.forward
    trainer = Trainer(
        model=run.lm.model,
        reward_funcs=recorder.rewards,
        args=_config(run, folder),
        train_dataset=Dataset.from_list([{"prompt": problem.prompt, "answer": problem.answer} for problem in left]),
        processing_class=_padding_tokenizer(run.lm),
        callbacks=[Steps()],
        optimizers=(run.optimizer, _warm_up(run)),
        rollout_func=recorder.rollouts,
    )
    use_own_logits(run.lm.model, method.temperature, forward)
    trainer.remove_callback(PrinterCallback)  # without a progress bar the trainer prints a summary at its end
    return trainer


def _config(run: RlRun, folder: str) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    method = run.method
    rollouts = method.prompts * method.samples
    # As many micro-batches as are generated at once are accumulated, so that weights never change between sampling and step:
    # TRL then takes no importance ratio (the log-probabilities stand for their own old ones).
    pieces = rollouts // (method.micro_batch or rollouts)
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rollouts // pieces,
        gradient_accumulation_steps=pieces,
        steps_per_generation=pieces,
        num_generations=method.samples,
        max_completion_length=method.max_new_tokens,
        temperature=method.temperature,
        loss_type="dapo",
        scale_rewards="none",
        beta=0.0,
        router_aux_loss_coef=0.0,  # else TRL adds a mixture of experts' own loss, which balances experts and rewards nothing
        max_steps=method.steps - run.first,
        max_grad_norm=method.optimizer.max_grad_norm or 0.0,  # 0: not clipped
        shuffle_dataset=False,  # the problems are in order already, see `rl_training`
        remove_unused_columns=False,  # `answer` goes to the reward function and to no argument of the model
        gradient_checkpointing=False,  # it runs blocks a second time, outside of a pass: hooks would refuse
        disable_dropout=False,  # would set it to 0 for good; `_borrowed` keeps the model in evaluation mode instead
        bf16=False,  # TRL's default is autocast; the model computes in the data type that the spec says
        use_cpu=run.lm.device.type == "cpu",
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    if config.world_size > 1:
        raise InvalidInput(
            "steering vectors are trained by one process; start latentbench without torchrun or accelerate"
        )
    config._n_gpu = min(config.n_gpu, 1)  # a second visible GPU would double the rollouts of a step, unasked
    return config


class _Recorder:
    """Writes and grades rollouts, and remembers what they were."""

    def __init__(self, run: RlRun) -> None:
        self._run, self._step = run, run.first
        self._answers: list[Answer] = []
        self.statistics = StepStatistics(samples=run.method.samples)

    def begin(self) -> None:
        """Before a step: everything random in it follows from its number."""
        # TRL shuffles a step's rollouts among its micro-batches with the global generator, which also orders their sums.
        torch.manual_seed(seed_of(self._run.seed, "shuffle", self._step))
        self.statistics = StepStatistics(samples=self._run.method.samples)

    def rollouts(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function: `prompts` hold every prompt once per sample."""
        run, method = self._run, self._run.method
        generator = torch.Generator(run.lm.device)
        generator.manual_seed(seed_of(run.seed, "rollouts", self._step, trainer.accelerator.process_index))
        once = prompts[:: method.samples]  # every prompt is read once, and continued `samples` times
        sampling = Sampling(method.max_new_tokens, method.temperature, method.stop, method.rollouts == "continuous")
        self._answers = answers(
            run.lm,
            once,
            sampling,
            samples=method.samples,
            generator=generator,
            layout=run.layout,
            rows=method.rollout_batch,
        )
        ids = [row for row in prompt_ids(run.lm, once) for _ in range(method.samples)]
        # TRL requires the key `logprobs`, and reads it only where another engine (vLLM) has written the rollouts.
        return {"prompt_ids": ids, "completion_ids": [answer.ids for answer in self._answers], "logprobs": None}

    def rewards(self, answer: list[str], **unused: Any) -> list[float | None]:
        """TRL's reward function: ±1, times G / (G − 1)."""
        given = [1.0 if right else -1.0 for right in self._graded(answer)]
        self.statistics.rewards = given
        self.statistics.lengths = [len(written.ids) for written in self._answers]
        self.statistics.truncated = sum(written.truncated for written in self._answers)
        samples = self._run.method.samples
        # r_i − mean of the others = (r_i − mean of all) · G / (G − 1), and TRL subtracts the mean of all.
        return [reward * samples / (samples - 1) for reward in given]

    def _graded(self, gold: list[str]) -> list[bool]:
        method = self._run.method
        if method.reward == "random":
            # Not by the text: what depends on it can be learned, and short answers were.
            coin = random.Random(seed_of(self._run.seed, "rewards", self._step))
            return [coin.random() < 0.5 for _ in gold]
        right = grader(method.reward)
        return [right(written.text, answer) for written, answer in zip(self._answers, gold, strict=True)]

    def note_gradient(self) -> None:
        """Before the weights change (and after clipping)."""
        gradients = [p.grad.double().square().sum() for p in self._run.parameters.values() if p.grad is not None]
        self.statistics.gradient_norm = float(torch.stack(gradients).sum().sqrt()) if gradients else 0.0

    def finish(self) -> StepStatistics:
        """After a step."""
        self._step += 1
        return self.statistics


def informative_pieces(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A micro-batch without the rows that have no advantage, in pieces of similar length with little padding.

    Their losses add up to that of the whole, since each is a sum over tokens divided by the step's number of tokens.
    """
    lengths = inputs["completion_mask"].sum(1)
    # Advantages of a prompt whose rewards are all alike are 0 but for rounding; others are at least 2 / (G − 1).
    rows = inputs["advantages"].abs().gt(1e-9).nonzero()[:, 0]
    rows = rows[lengths[rows].argsort(descending=True, stable=True)]
    while len(rows):
        width = int(inputs["prompt_mask"].shape[1] + lengths[rows[0]])  # the longest that is left comes first
        piece, rows = rows.split([count := min(len(rows), max(1, _PIECE_TOKENS // width)), len(rows) - count])
        yield _trimmed(inputs, piece, int(lengths[piece[0]]))


def _trimmed(inputs: Mapping[str, Any], rows: Tensor, longest: int) -> dict[str, Any]:
    """Some rows, without columns that are padding in all of them: prompts are padded on the left, completions on the right."""
    prompts = int(inputs["prompt_mask"][rows].sum(1).max())
    piece: dict[str, Any] = dict(inputs)
    for name in ("prompt_ids", "prompt_mask"):
        piece[name] = inputs[name][rows][:, -prompts:]
    for name in ("completion_ids", "completion_mask"):
        piece[name] = inputs[name][rows][:, :longest]
    piece["advantages"] = inputs["advantages"][rows]
    return piece


def _warm_up(run: RlRun) -> torch.optim.lr_scheduler.LambdaLR:
    """Constant after a linear rise, at the place of the first step to be taken."""
    warm = run.method.optimizer.warmup
    return torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: min(1.0, (run.first + step + 1) / (warm + 1)))


def _padding_tokenizer(lm: LanguageModel) -> Any:
    """A copy of the tokenizer that pads with a token the model knows: TRL pads with what the tokenizer says."""
    tokenizer: Any = copy.deepcopy(lm.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_of(lm))
    return tokenizer


@contextmanager
def _borrowed(lm: LanguageModel) -> Iterator[None]:
    """The model as a trainer needs it; afterwards it is as it was.

    Its parts stay in evaluation mode while it says it trains: the policy that is trained must be the one that was
    sampled, without dropout. Log-probabilities are computed with the positions that sampling used, without padding.
    """
    model: Any = lm.model
    before, training = dict(vars(model)), model.training
    # The trainer writes its padding token into both configurations and turns the cache off in the first.
    config, generation = dict(vars(model.config)), dict(vars(model.generation_config))

    def train(mode: bool = True) -> Any:
        # TRL looks at `model.training` to tell a step from an evaluation; `nn.Module.train` would switch dropout on below.
        model.training = mode
        return model

    nn.Module.eval(model)
    model.train = train
    handle = model.register_forward_pre_hook(_with_positions, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        for name in vars(model).keys() - before.keys():
            delattr(model, name)
        vars(model).update(before)
        nn.Module.train(model, training)
        for part, known in ((model.config, config), (model.generation_config, generation)):
            vars(part).clear()
            vars(part).update(known)


def _with_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Positions that do not count padding, for models that know absolute ones.

    TRL pads prompts on the left and tells no positions, so a model would count columns: another text than was sampled.
    """
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if isinstance(mask, Tensor) and mask.ndim == 2 and cache is None and kwargs.get("position_ids") is None:
        kwargs = {**kwargs, "position_ids": positions_in(mask)}
    return args, kwargs


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, advice or network from the trainer."""
    from transformers.utils import logging

    level, known = logging.get_verbosity(), os.environ.get("TRL_EXPERIMENTAL_SILENCE")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if known is None:
            del os.environ["TRL_EXPERIMENTAL_SILENCE"]
        else:
            os.environ["TRL_EXPERIMENTAL_SILENCE"] = known
