"""The parts of `latentbench bench gpu` that measure: HierarchicalTopK at size, training steps, tiles of kernels, an RL step.

Times are those of CUDA events, on the device's own clock. Two calls before them compile kernels and allocate; the first is told
apart, with its compiling. Memory is the most that torch's allocator held, inputs included.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from latentbench.activations.fitting import out_of_memory
from latentbench.bench.gpu_report import CHECKOUT, Teller
from latentbench.bench.train import SHAPES, Shape, StepTiming, compare, compare_memory, native_step
from latentbench.core.border import contained, reason
from latentbench.core.errors import CellFailed
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugin
from latentbench.core.progress import Progress
from latentbench.core.protocols import LanguageModel
from latentbench.core.resources import now
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.sae.autoencoder import Codes
from latentbench.sae.memory import release
from latentbench.sae.options import HierarchicalTopKOptions, TopKOptions, Variant
from latentbench.sae.sparse_kernels.dispatch import backend, forced
from latentbench.sae.variants.topk import BudgetLoss
from latentbench.steering.optimised import RlMethod
from latentbench.study.context import StageContext

TOLERANCE = 1e-4
"""How far float32 results may be from torch's, relative to the largest: rounding of sums of some thousand terms, and much less
than a wrong index or a race would do."""


@dataclass(frozen=True)
class Timing:
    """Calls of one piece of work."""

    first: float
    """Seconds of the first call, waited for."""
    seconds: float
    """Median of those that were timed."""
    peak: int | None
    """Bytes that torch's allocator held at most; None where nobody counts."""

    def tell(self, tell: Teller, what: str, note: str = "") -> None:
        """Notes them."""
        tell.found(what, round(1e3 * self.seconds, 4), "ms", note)
        tell.found(f"{what}: first call, compiling included", round(self.first, 2), "s")
        if self.peak is not None:
            tell.found(f"{what}: peak memory", round(self.peak / 2**30, 3), "GiB")


def timed(work: Callable[[], object], device: torch.device, rounds: int) -> Timing:
    """Times `work`, which is called `rounds` + 2 times."""
    start = now(device)
    work()
    first = now(device) - start
    work()
    if device.type != "cuda":
        return Timing(first, median(_seconds_here(work, device) for _ in range(rounds)), None)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    seconds = median(_seconds_there(work, device) for _ in range(rounds))
    return Timing(first, seconds, torch.cuda.max_memory_allocated(device))


def _seconds_here(work: Callable[[], object], device: torch.device) -> float:
    start = now(device)
    work()
    return now(device) - start


def _seconds_there(work: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def _where_memory_suffices(tell: Teller, what: str) -> Iterator[None]:
    """What does not fit on this device is noted and left out; everything else is raised."""
    try:
        yield
    except BaseException as error:
        # Not kept beyond this block: its traceback holds every tensor of the attempt.
        if not out_of_memory(contained(error)):
            raise
        tell.found(what, None, note="memory does not suffice")
    _let_go()


def _let_go() -> None:
    """Frees what earlier measurements left, so that it is in no later one's peak."""
    release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class LossProblem:
    """Codes, decoder and target of HierarchicalTopK's loss, as the benchmark of the paper's kernels draws them."""

    codes: Codes
    decoder: Tensor
    bias: Tensor
    target: Tensor

    @staticmethod
    def of(shape: Shape, device: torch.device) -> LossProblem:
        """A problem of this size on `device`."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, device=device, generator=generator)

        values = normal(shape.batch, shape.k).abs().requires_grad_()
        indices = torch.randint(0, shape.width, (shape.batch, shape.k), device=device, generator=generator)
        decoder, bias = normal(shape.width, shape.d_in).requires_grad_(), normal(shape.d_in).requires_grad_()
        return LossProblem(Codes(values, indices), decoder, bias, normal(shape.batch, shape.d_in))

    def run(self) -> list[Tensor]:
        """The loss over all budgets and its gradients, which nobody keeps."""
        leaves = [self.codes.values, self.decoder, self.bias]
        loss = BudgetLoss(tuple(range(1, self.codes.values.shape[1] + 1)))(
            self.codes, self.decoder, self.bias, self.target
        ).loss
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]


SIZE = Shape(d_in=2_304, width=65_536, k=128, batch=4_096)
"""The dictionary of flexsae's benchmark, which does not say how many tokens a batch has."""
PUBLISHED = {32: (6.696, 2.92), 64: (7.995, 2.92), 128: (10.609, 2.93)}
"""Milliseconds and GiB by K that flexsae, the paper's kernels, publishes for HierarchicalTopK at this width and d."""
DRY_SIZE = Shape(d_in=24, width=32, k=8, batch=4)


def hierarchical(tell: Teller, device: torch.device) -> None:
    """HierarchicalTopK's loss with gradients at three K, against torch's operations, and whole training steps.

    Raises CellFailed where the kernels' results are not torch's.
    """
    size = DRY_SIZE if tell.small else SIZE
    tell.found("tokens in a batch", size.batch)
    tell.found("kernels", backend(torch.empty(1, device=device)).name)
    apart = _apart(tell, LossProblem.of(size, device))
    for k in (size.k // 4, size.k // 2, size.k):
        with _where_memory_suffices(tell, what := f"HierarchicalTopK loss and gradients, K = {k}"):
            problem = LossProblem.of(Shape(size.d_in, size.width, k, size.batch), device)
            timed(problem.run, device, 3 if tell.small else 20).tell(tell, what, _published(k))
    with _where_memory_suffices(tell, what := f"the same by torch's operations, K = {size.k}"), forced("torch"):
        timed(LossProblem.of(size, device).run, device, 3).tell(tell, what)
    kinds = {
        "HierarchicalTopK": HierarchicalTopKOptions(width=size.width, k=size.k),
        "TopK": TopKOptions(width=size.width, k=size.k),
    }
    for name, options in kinds.items():
        with _where_memory_suffices(tell, what := f"{name} training step, K = {size.k}"):
            timed(_step(options, size, device), device, 3 if tell.small else 10).tell(tell, what)
    if apart > TOLERANCE:
        raise CellFailed(f"the kernels' results are {apart:.2g} apart from torch's, {TOLERANCE:g} is allowed")


def _published(k: int) -> str:
    if k not in PUBLISHED:
        return ""
    time, memory = PUBLISHED[k]
    return f"flexsae publishes {time} ms and {memory} GiB a step, on a card, batch and type that it does not name"


def _step(options: Variant, size: Shape, device: torch.device) -> Callable[[], None]:
    return native_step(options, torch.randn(size.batch, size.d_in, device=device))


def _apart(tell: Teller, problem: LossProblem) -> float:
    """The largest difference between the kernels' loss and gradients and torch's, relative to the largest number."""
    own = problem.run()
    with forced("torch"):
        wanted = problem.run()
    found = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(own, wanted, strict=True)]
    names = ("loss", "gradient of values", "gradient of decoder", "gradient of bias")
    for name, apart in zip(names, found, strict=True):
        tell.found(f"{name}: largest difference from torch's operations", apart, "of the largest")
    return max(found)


def train(tell: Teller, device: torch.device) -> None:
    """`bench train` on this device. Where sae-lens is missing or falls, the rest is measured without it."""
    shapes = (Shape(16, 64, 4, 32),) if tell.small else SHAPES
    measure, against = partial(compare, rounds=1 if tell.small else 10, device=str(device), torch_path=True), True
    for shape in shapes:
        try:
            timings = measure(shape, sae_lens=against)
        except BaseException as error:  # another library's step must not cost our figures
            if not against:
                raise
            tell.found("sae-lens", None, note=reason(contained(error)))
            against, timings = False, measure(shape, sae_lens=False)
        for timing in timings:
            _tell_step(tell, timing)
        _let_go()
        if device.type == "cuda":
            memory = compare_memory(shape, str(device))
            tell.found(f"TopK, k = {memory.k}, {_size(shape)}: memory", round(memory.topk / 2**20, 1), "MiB")
            tell.found(f"HierarchicalTopK, k = {memory.k}, {_size(shape)}: memory", round(memory.ratio, 3), "× TopK's")
        _let_go()


def _tell_step(tell: Teller, timing: StepTiming) -> None:
    what = f"{timing.candidate}, {_size(timing.shape)}"
    tell.found(what, round(timing.tokens_per_second), "tokens/s")
    if timing.speedup_over_sae_lens is not None:
        tell.found(what, round(timing.speedup_over_sae_lens, 3), "× sae-lens' speed")
    if timing.speedup_over_autocast is not None:
        tell.found(what, round(timing.speedup_over_autocast, 3), "× sae-lens' speed with autocast")
    if timing.speedup_over_torch is not None:
        tell.found(what, round(timing.speedup_over_torch, 3), "× torch's speed")
    tell.found(what, round(timing.cost_over_topk, 3), "× TopK's time")


def _size(shape: Shape) -> str:
    return f"d = {shape.d_in}, {shape.width:,} latents, {shape.batch:,} tokens"


TRIED = {"HELD": (4, 8, 16, 32), "BLOCK_D": (512, 256, 1024), "BLOCK_E": (8, 4, 16), "PER_WARP": (128, 64, 256)}
"""Sizes of `triton_backend`; the first of each is what it has."""


def sizes(tell: Teller, device: torch.device) -> None:
    """HierarchicalTopK's loss with other tiles than the kernels have, one at a time."""
    size = DRY_SIZE if tell.small else SIZE
    problem = LossProblem.of(size, device)
    for name, tried in TRIED.items():
        for value in tried[:2] if tell.small else tried:
            what = f"{name} = {value}"
            with _where_memory_suffices(tell, what), _with(name, value):
                timing = timed(problem.run, device, 1 if tell.small else 5)
            tell.found(what, round(1e3 * timing.seconds, 4), "ms")
            if timing.peak is not None:
                tell.found(f"{what}: peak memory", round(timing.peak / 2**30, 3), "GiB")


@contextmanager
def _with(name: str, value: int) -> Iterator[None]:
    """Within it the Triton kernels have another size."""
    from latentbench.sae.sparse_kernels import triton_backend

    before = getattr(triton_backend, name)
    setattr(triton_backend, name, value)
    try:
        yield
    finally:
        setattr(triton_backend, name, before)


def rl(tell: Teller, device: torch.device) -> None:
    """Writing answers, and steps of reinforcement learning, on the pocket model and on a larger one."""
    pocket: LanguageModel = plugin("models", "pocket")().load(Roots(CHECKOUT), device)
    larger = _random_model(pocket, tell.small)
    models = {"pocket model, float32": pocket, "random Llama, bfloat16": larger}
    for name, lm in models.items():
        tell.found(f"{name}: parameters", round(sum(p.numel() for p in lm.model.parameters()) / 1e6, 1), "millions")
        # First of both, since it needs one library less.
        with _where_memory_suffices(tell, f"{name}: writing"):
            _writing(tell, name, lm)
    for name, lm in models.items():
        with tempfile.TemporaryDirectory() as folder, _where_memory_suffices(tell, f"{name}: step"):
            _rl_steps(tell, name, lm, Path(folder))


def _random_model(like: LanguageModel, small: bool) -> LanguageModel:
    """A model with random weights and the tokenizer of `like`, of a size that people train on one GPU."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    width, layers = (32, 2) if small else (2048, 16)
    config = LlamaConfig(
        vocab_size=like.model.config.vocab_size,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 16 if small else width // 128,
        max_position_embeddings=1024,
        bos_token_id=like.model.config.bos_token_id,
        eos_token_id=like.model.config.eos_token_id,
    )
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with like.device:
        model = auto.from_config(config, dtype=torch.bfloat16)
    return LanguageModel(model.eval().requires_grad_(False), like.tokenizer, like.device)


@dataclass(frozen=True)
class Rollouts:
    """What is written in a step of reinforcement learning."""

    prompts: int
    samples: int
    tokens: int

    @staticmethod
    def of(small: bool) -> Rollouts:
        """The defaults of `steering: {method: rl}`, or next to nothing."""
        return Rollouts(2, 2, 4) if small else Rollouts(32, 8, 96)


def _writing(tell: Teller, name: str, lm: LanguageModel) -> None:
    size = Rollouts.of(tell.small)
    texts = plugin("problems", "pocket")().problems(Roots(CHECKOUT))
    prompts = [problem.prompt for problem in islice(texts, size.prompts)]
    written = list[int]()

    def write() -> None:
        generator = torch.Generator(lm.device).manual_seed(0)
        found = answers(lm, prompts, Sampling(size.tokens, 1.0), samples=size.samples, generator=generator)
        written.append(sum(len(answer.ids) for answer in found))

    timing = timed(write, lm.device, 1 if tell.small else 3)
    timing.tell(tell, f"{name}: writing {size.prompts} × {size.samples} answers")
    tell.found(f"{name}: writing", round(written[-1] / timing.seconds), "new tokens/s")


def _rl_steps(tell: Teller, name: str, lm: LanguageModel, folder: Path) -> None:
    size, steps = Rollouts.of(tell.small), 2 if tell.small else 4
    shape = {"prompts": size.prompts, "samples": size.samples, "max_new_tokens": size.tokens, "selection": 0}
    section = {"method": "rl", "problems": {"adapter": "pocket"}, "steps": steps, **shape}
    method = RlMethod.model_validate_json(json.dumps(section))
    times = [now(lm.device)]
    method.make(_context(lm, folder, lambda *_, **__: times.append(now(lm.device))))
    seconds = [after - before for before, after in pairwise(times)]
    tell.found(f"{name}: first step, loading of libraries included", round(seconds[0], 2), "s")
    tell.found(f"{name}: step of {size.prompts} × {size.samples} answers", round(median(seconds[1:]), 4), "s")


def _context(lm: LanguageModel, folder: Path, progress: Progress) -> StageContext:
    """What a method needs of a stage, without a spec and without a store."""

    def nothing(*_: Any) -> Any:
        return None

    return StageContext(
        experiment=SimpleNamespace(model=None, dataset=SimpleNamespace(eval={}), token_rule=EVERY_TOKEN),
        key="gpu",
        roots=Roots(folder),
        device=lm.device,
        scratch=folder / "scratch",
        cache=folder / "cache",
        model=lambda: lm,
        tokenizer=lambda: lm.tokenizer,
        saes=dict,
        subject=nothing,
        tokens=nothing,
        shared=lambda kind, payload, make: make(),
        progress=progress,
    )
