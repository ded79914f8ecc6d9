"""Training many SAEs from one stream of hidden states, bit-exactly resumable at block boundaries.

The loop feeds every batch to every trainer. The trainer of native variants has AdamW, warm-up and decay, clipping, dead
latents, the loss curve, and exact resume: its state determines everything that comes after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from math import cos, isfinite, nan, pi, sqrt
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from latentbench.core.border import contained
from latentbench.core.errors import CellFailed, RefusedFile
from latentbench.core.resources import now
from latentbench.core.sites import Site
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup, set_process_group, squared_spread
from latentbench.sae.autoencoder import SparseAutoencoder, TrainableSAE, TrainingLoss
from latentbench.sae.memory import MemoryUsage, gradients, release
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.sparse_kernels.dispatch import backend


class Stream(Protocol):
    """Shuffled hidden states in blocks; every block is a pure function of its number."""

    @property
    def blocks(self) -> int:
        """Number of shuffle blocks."""

    @property
    def steps(self) -> int:
        """Number of batches over all blocks."""

    @property
    def first_norms(self) -> dict[Site, float]:
        """Mean L2 norm of the first block's hidden states."""

    @property
    def means(self) -> dict[Site, Tensor]:
        """Mean hidden state [d_in] of the first block."""

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """Batches [n, d_in] float32 of one block, for every site."""


@dataclass
class Throughput:
    """Tokens learned from and the seconds spent in steps."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first step."""
        return self.tokens / self.seconds if self.seconds else None


class Trainer(Protocol):
    """One SAE being made from the stream."""

    site: Site
    """Where its hidden states come from."""
    next_block: int
    """First block it has not seen yet."""
    throughput: Throughput
    """How fast its steps were; of this process alone, and never part of its state."""

    def step(self, x: Tensor) -> None:
        """Learns from hidden states `x` [n, d_in] as the model produces them."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continues exactly where `state` was taken. Raises RefusedFile when it belongs to another SAE."""

    def finish(self) -> SparseAutoencoder:
        """The SAE, reading and writing hidden states as the model produces them."""


Outcome = SparseAutoencoder | Exception
T = TypeVar("T", bound=Trainer)


def train(
    trainers: Sequence[T],
    stream: Stream,
    checkpoint: Callable[[list[T]], None] | None = None,
    after_batch: Callable[[int], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[T, Outcome]:
    """Feeds every batch to every trainer that has not seen its block yet.

    `checkpoint(trainers)` is called after every block with those still in training, whose `next_block` has advanced;
    `after_batch(block)` after every batch of a block. A trainer that raises is dropped, its exception is its outcome, and the
    others go on; in a group of processes it must be an error that all members meet, otherwise it is raised.
    """
    failed: dict[T, Exception] = {}
    # Trainers may have been interrupted at different blocks: the stream starts where the first of them needs it.
    for block in range(min((t.next_block for t in trainers), default=0), stream.blocks):
        active = [t for t in trainers if t not in failed and t.next_block <= block]
        for batch in stream.batches(block) if active else ():  # asking for batches runs the model over the whole block
            _feed(active, batch, failed, group)
            if after_batch is not None:
                after_batch(block)
        active = [t for t in active if t not in failed]
        for trainer in active:
            trainer.next_block = block + 1
        if checkpoint is not None and active:
            checkpoint(active)
        if len(failed) == len(trainers):
            break
    # What the kernels keep between steps has the shapes of these SAEs and would stay for the life of the process.
    release()
    return {trainer: failed.get(trainer) or _finished(trainer) for trainer in trainers}


def _feed(trainers: list[T], batch: dict[Site, Tensor], failed: dict[T, Exception], group: ProcessGroup) -> None:
    for trainer in trainers:
        if trainer not in failed:
            x = batch[trainer.site]
            start = now(x.device)  # what the model or another SAE has queued is not this one's
            try:
                trainer.step(x)
            except BaseException as error:  # one trainer's failure must not end the others' training
                kept = contained(error)
                if not group.is_common_error(kept):
                    raise
                failed[trainer] = kept
            trainer.throughput.tokens += len(x)
            trainer.throughput.seconds += now(x.device) - start


def _finished(trainer: Trainer) -> Outcome:
    try:
        return trainer.finish()
    except BaseException as error:  # as above
        return contained(error)


CURVE_COLUMNS = ("step", "reconstruction", "normalised", "auxiliary", "l0", "dead", "lr")
"""Columns of the training curve. `reconstruction`: squared error per token on scaled inputs; `normalised`: that over
the batch's squared distance from its mean; `l0`: active latents per token; `dead`: dead latents."""
CURVE_POINTS = 100
"""About how many points of the curve are recorded."""
KERNEL_NAMES = ("numba", "triton", "torch", "autograd")
"""What computes a step: a backend of the sparse products, or autograd alone for variants with dense latents."""
MAX_DEAD_AFTER = 10_000_000
"""Upper limit of the default dead-latent threshold, in tokens (Gao et al. 2024)."""


def learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Linear warm-up to `lr`, then along the schedule to `final_lr` at the last of `steps` steps."""
    warmup = round(options.warmup * steps)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    start = max(warmup, steps - round(options.decay * steps))
    if options.schedule == "constant" or step < start:
        return options.lr
    done = min(1.0, (step - start) / max(1, steps - 1 - start))
    left = 1 - done if options.schedule == "linear" else (1 + cos(pi * done)) / 2
    return options.final_lr + (options.lr - options.final_lr) * left


class BatchLoss(NamedTuple):
    """A step's loss on the whole batch, of which each member of a process group has a share."""

    tokens: int
    total: float
    reconstruction: float
    auxiliary: float
    firing: Tensor
    """[width] int64: see `TrainingLoss`."""


def batch_loss(loss: TrainingLoss, tokens: int, group: ProcessGroup) -> BatchLoss:
    """The members' losses averaged, each weighted by its tokens; in float64, so that a process alone keeps its own."""
    # One collective for losses and firing counts together; float64 holds counts of tokens exactly.
    means = torch.stack([loss.total.detach(), loss.reconstruction, loss.auxiliary]).double()
    sums = group.all_sum(torch.cat([means.new_tensor([tokens]), means * tokens, loss.firing.double()]))
    count, total, reconstruction, auxiliary = sums[:4].tolist()
    return BatchLoss(int(count), total / count, reconstruction / count, auxiliary / count, sums[4:].long())


class NativeTrainer:
    """A native SAE with everything its training needs. Not thread-safe."""

    def __init__(
        self,
        sae: TrainableSAE,
        site: Site,
        training: TrainingOptions,
        *,
        steps: int,
        first_norm: float,
        mean: Tensor,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """`steps`: batches of the whole run; `first_norm`, `mean` [d_in]: of the stream's first block at `site`.

        Every member of `group` has such a trainer in the same state and gives it a share of each batch.
        """
        self.sae, self.site, self.training, self.steps, self.group = sae, site, training, steps, group
        set_process_group(sae, group)
        # Mean norm √d_in: then learning rate and penalties mean the same for models whose hidden states differ in size.
        self.scale = sqrt(sae.d_in) / first_norm if training.normalise and first_norm > 0 else 1.0
        self.dead_after = training.dead_after or min(MAX_DEAD_AFTER, max(1, steps * training.batch // 10))
        self.next_block = self.next_step = 0
        self.silent = torch.zeros(sae.width, dtype=torch.int64, device=mean.device)
        self.curve: list[tuple[float, ...]] = []
        self.throughput, self.usage = Throughput(), MemoryUsage()
        self.devices, self.kernels = Counter[int](), Counter[str]()
        # A tensor on the device: read in every step it would make the device wait. NaN where nobody counted.
        self.clipped = torch.zeros((), dtype=torch.float64, device=mean.device)
        sae.to(mean.device).begin(mean, self.scale)
        self.parameters = {name: p for name, p in sae.named_parameters() if p.requires_grad}
        # Fused: one pass over weights, gradients and moments instead of one for each of Adam's operations.
        self.adam = torch.optim.Adam(
            self.parameters.values(), lr=training.lr, betas=training.betas, fused=True, foreach=False
        )

    def step(self, x: Tensor) -> None:
        """One optimiser step on hidden states `x` [n, d_in]. Raises CellFailed when the loss is not finite."""
        # Looked at where the curve is recorded only: every saved tensor is a call into Python there.
        with self.usage.of_step(self.sae, self.adam, x.device) if self._recorded else nullcontext():
            self._step(x * self.scale)
        self.next_step += 1
        self.devices[self.group.size] += 1
        self.kernels[self._kernels] += 1

    @property
    def _recorded(self) -> bool:
        """Whether the coming step is a point of the curve."""
        return self.next_step % max(1, self.steps // CURVE_POINTS) == 0 or self.next_step == self.steps - 1

    @cached_property
    def _kernels(self) -> str:
        return backend(*self.parameters.values()).name if self.sae.uses_kernels else "autograd"

    def _step(self, x: Tensor) -> None:
        # Over the loss alone: gradients of the sparse products are summed up in float32.
        with _low_precision(x.device) if self.training.precision == "bfloat16" else nullcontext():
            loss = self.sae.loss(x, self.silent >= self.dead_after, self.next_step, self.steps)
        # Of the whole batch, so that every member checks, records and counts the same numbers and raises the same
        # errors.
        of_all = batch_loss(loss, len(x), self.group)
        lr = learning_rate(self.training, self.next_step, self.steps)
        self._check(of_all, lr)
        # Weighted by its tokens, and added up in `_update`, the members' gradients are those of the mean over the
        # batch.
        (loss.total * (len(x) / of_all.tokens)).backward()  # type: ignore[no-untyped-call]
        self._update(lr)
        self._follow(of_all, x, lr)

    def _check(self, loss: BatchLoss, lr: float) -> None:
        if not isfinite(loss.total):
            raise CellFailed(
                f"the training loss is {loss.total} at step {self.next_step} of {self.steps} (learning rate "
                f"{lr:.3g}): lower training.lr, raise training.warmup or set training.gradient_clip"
            )

    def _update(self, lr: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = lr
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad = self.group.all_sum(parameter.grad)
        # After the sum: the norm to clip is that of the whole batch's gradient.
        if (clip := self.training.gradient_clip) is not None:
            self.clipped += nn.utils.clip_grad_norm_(self.parameters.values(), clip) > clip
        # Not through the optimiser: it would decay whole tensors, and of some only a part learns.
        if self.training.weight_decay:
            self.sae.decay_weights(lr * self.training.weight_decay)
        self.adam.step()
        for parameter in self.parameters.values():
            # Given back and not zeroed: the next backward pass of the kernels takes it as the room to write its gradient to.
            if parameter.grad is not None and self.sae.uses_kernels:
                gradients.give(parameter.grad)
            parameter.grad = None
        self.sae.after_step()

    def _follow(self, loss: BatchLoss, x: Tensor, lr: float) -> None:
        # Counted in tokens and not in steps, so that the threshold does not depend on the batch size.
        self.silent += loss.tokens
        self.silent[loss.firing > 0] = 0
        if self._recorded:
            self.curve.append(self._point(loss, x, lr))

    def _point(self, loss: BatchLoss, x: Tensor, lr: float) -> tuple[float, ...]:
        spread = squared_spread(self.sae.compared(x), loss.tokens, self.group) / loss.tokens
        l0 = loss.firing.sum().item() / loss.tokens
        dead = int((self.silent >= self.dead_after).sum())
        normalised = loss.reconstruction / max(spread.item(), 1e-30)
        # All floats, as they come back from a checkpoint: a resumed run must write the same bytes.
        return (float(self.next_step), loss.reconstruction, normalised, loss.auxiliary, l0, float(dead), lr)

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers, Adam's moments and step, dead-latent counters, curve and position, as copies."""
        state = {f"sae.{name}": t.detach().clone() for name, t in self.sae.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.adam.state[parameter].items():
                state[f"adam.{name}.{key}"] = value.detach().clone()
        state["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, len(CURVE_COLUMNS))
        state["devices"] = torch.tensor(sorted(self.devices.items())).reshape(-1, 2)
        state["kernels"] = torch.tensor([self.kernels[name] for name in KERNEL_NAMES])
        state["memory"] = torch.tensor([self._most_memory()])
        state["clipped"] = self.clipped.clone()
        return state | {"silent": self.silent.clone(), "position": torch.tensor([self.next_block, self.next_step])}

    def _most_memory(self) -> int:
        """Of the member that needs most."""
        # The largest as the smallest of the negatives: the group has one such collective.
        return -int(self.group.all_min(torch.tensor(-self.usage.peak)))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continues exactly where `state` was taken. Raises RefusedFile when it does not fit this SAE."""
        weights = {name.removeprefix("sae."): t for name, t in state.items() if name.startswith("sae.")}
        try:
            self.sae.load_state_dict(weights)
            self.silent.copy_(state["silent"])
            for name, parameter in self.parameters.items():
                self.adam.state[parameter] = _moments(state, f"adam.{name}.", parameter)
            self.next_block, self.next_step = state["position"].tolist()
            self.curve = [tuple(row) for row in state["curve"].tolist()]
            # The number of devices may change between two runs, so steps are counted per number.
            self.devices = Counter(dict(state.get("devices", torch.tensor([[1, self.next_step]])).tolist()))
            # Checkpoints of earlier versions have none of these.
            self.clipped.copy_(state.get("clipped", torch.tensor(nan)))
            if "kernels" in state:
                self.kernels = Counter(dict(zip(KERNEL_NAMES, state["kernels"].tolist(), strict=True)))
                (self.usage.peak,) = state["memory"].tolist()
        except (RuntimeError, KeyError, ValueError) as error:
            raise RefusedFile(f"the training checkpoint does not fit this SAE: {error}") from error

    @property
    def loss(self) -> float | None:
        """The latest point of the curve: squared error over the batch's squared distance from its mean."""
        return self.curve[-1][CURVE_COLUMNS.index("normalised")] if self.curve else None

    def training_record(self) -> dict[str, Any]:
        """What is kept beside the weights: the curve by column, the input scale, the dead-latent threshold, how many
        steps there were, what share of them was clipped, how many were made on how many devices and by which kernels, and
        the memory they took."""
        columns = zip(*self.curve, strict=True) if self.curve else ((),) * len(CURVE_COLUMNS)
        curve = {name: list(column) for name, column in zip(CURVE_COLUMNS, columns, strict=True)}
        made = {"steps": self.next_step, "devices": {str(n): steps for n, steps in sorted(self.devices.items())}}
        made["kernels"] = {name: steps for name, steps in sorted(self.kernels.items()) if steps}
        made |= {"triton": _triton()} if self.kernels["triton"] else {}
        made["memory_bytes"] = self.usage.peak
        made["precision"] = self.training.precision
        made["optimiser"] = "AdamW" if self.training.weight_decay else "Adam"
        made["share_clipped"] = self._share_clipped()
        return {"curve": curve, "input_scale": self.scale, "dead_after": self.dead_after, **made}

    def _share_clipped(self) -> float | None:
        """Of the steps; None where nobody counted them: before a checkpoint of earlier versions."""
        clipped = self.clipped.item()
        return clipped / max(1, self.next_step) if isfinite(clipped) else None

    def finish(self) -> SparseAutoencoder:
        """The SAE in evaluation mode, input scale folded into its weights; the trainer is used up."""
        self.usage.peak = self._most_memory()
        self.sae.fold_input_scale(self.scale)
        return self.sae.eval().requires_grad_(False)


def _low_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # some builds of torch bring it under another name
        return "unknown"


def _moments(state: dict[str, Tensor], prefix: str, parameter: Tensor) -> dict[str, Tensor]:
    """Copies of a parameter's moments and step count where the parameter is: fused Adam steps on nothing else."""
    found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    moments = {name: t.to(parameter.device, copy=True) for name, t in found.items()}
    for name, moment in moments.items():
        if name != "step" and moment.shape != parameter.shape:
            raise ValueError(f"{prefix}{name} has shape {list(moment.shape)} instead of {list(parameter.shape)}")
    return moments
