"""What a block's attention and MLP add to the residual stream, measured on the loaded model, and where that is read and written.

Most blocks put out x + a + m, the sum of their input and of what their attention and MLP put out. Some scale a and m
first (Granite, MiniCPM3, HyperCLOVA X), some normalise the sum, keep several streams or add a third thing. So every model
is asked once, in two passes over a few tokens that replace the inputs x of all blocks and the outputs a and m of their
attention and MLP by random numbers; x is the same in both. A block then adds μa and μ'm when

* from the first pass to the second its output moves by μ and μ' times what a and m were moved by,
* in the first, x, μa and μ'm add up to its output; where it has a state-space layer, convolution or the like instead of
  attention, x, μ'm and what one other part of it put out, and
* μ and μ' are 1 or numbers that the block holds,

all to rounding. None of this depends on the weights of attention and MLP. `hook_point` finds a site in a loaded model and
says how what is there is read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import (
    block_input,
    check_site,
    decoder_blocks,
    first_tensor,
    hidden_state,
    input_device,
    is_spread,
    mlp_input,
    submodule,
    with_block_input,
    with_first_tensor,
)
from latentbench.activations.measured_once import once_per_model
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import PAIR, Point, Site, written_at

PARTS: Mapping[Point, str] = {"attn_out": "attention", "mlp_out": "MLP"}

_TOKENS = 8
"""Per pass: two multipliers are fitted to 8 · d numbers, so that rounding averages out and chance explains nothing."""
_SIZES = (1 / 1024, 1.0)
"""Sizes of a and m in the two passes; x has the first in both. Small: what else a block adds stands out, because norms make x large
again. Large: by how much the output moves is exact, whatever else it adds."""
_ROUNDINGS = 4
"""How far sums may be off, in units of the data type's precision: 5e-7 of the norm in float32, 3 % in bfloat16."""


@dataclass(frozen=True)
class Additions:
    """What was found out about one block."""

    tuple_length: int
    """How many values it returns when nothing is cached: 0 for a bare tensor (most), else the tuple's length."""
    multipliers: Mapping[Point, float]
    """What it multiplies the outputs of its attention and MLP by before it adds them."""
    refusals: Mapping[Point, str] = field(default_factory=dict)
    """Why that could not be told, or why the output could not be read, of the others that it has."""
    runs: bool = True
    """Whether it runs in a pass over text alone; blocks that look at a picture (Mllama's) do not."""


@once_per_model
def additions(model: nn.Module) -> tuple[Additions, ...]:
    """What every decoder block adds, first to last; measured when first asked for.

    Raises InvalidInput for a model whose hidden states are not [batch, tokens, width] of the tokens that it is given.
    """
    passes = [_planted_pass(model, number) for number in range(2)]
    return tuple(_additions(one, two) for one, two in zip(*passes, strict=True))


class _Planted:
    """One block in one pass: the random numbers it was given, and what it put out."""

    def __init__(self, block: nn.Module, index: int, number: int) -> None:
        self.block, self.parts = block, _parts(block)
        self.entered: list[Tensor] = []
        self.added: dict[Point, list[Tensor]] = {point: [] for point in self.parts}
        self.others: list[Tensor] = []
        """What its other children put out."""
        self.left: list[Any] = []
        """What it returned itself, one for every time that it ran."""
        self._index, self._number = index, number

    def install(self, stack: ExitStack) -> None:
        """Hooks the block until `stack` is closed."""
        stack.callback(self.block.register_forward_pre_hook(self._entering, with_kwargs=True).remove)
        stack.callback(self.block.register_forward_hook(self._leaving).remove)
        for point, part in self.parts.items():
            stack.callback(part.register_forward_hook(self._adding(point)).remove)
        for child in set(self.block.children()) - set(self.parts.values()):
            stack.callback(child.register_forward_hook(self._beside).remove)

    def oddity(self) -> str:
        """What makes the numbers unusable: every part must have run once, and given one vector per token."""
        runs = {"it": len(self.left)} | {f"its {PARTS[point]}": len(added) for point, added in self.added.items()}
        if odd := [f"{part} runs {count} times" for part, count in runs.items() if count != 1]:
            return f"{' and '.join(odd)} in one pass of the model"
        size = self.entered[0].numel()
        if odd := [f"its {PARTS[point]}" for point, added in self.added.items() if added[0].numel() != size]:
            return f"{' and '.join(odd)} puts out something else than one vector per token"
        return ""

    def joined(self) -> dict[Point, str]:
        """The parts whose outputs do not tell the tokens of one text from those of another."""
        form = self.entered[0].shape
        sentence = "its {} puts out the tokens of all texts in one row"
        return {p: sentence.format(PARTS[p]) for p, added in self.added.items() if added[0].shape != form}

    def input(self) -> Tensor:
        """[numbers] float64: what was put in place of the block's input."""
        return _flat(self.entered[0])

    def output(self) -> Tensor:
        """[numbers] float64: what the block put out."""
        return _flat(first_tensor(self.left[0]))

    def columns(self) -> Tensor:
        """[numbers, parts] float64: what was put in place of the parts' outputs."""
        return torch.stack([_flat(added) for (added,) in self.added.values()], 1)

    def beside(self) -> list[Tensor]:
        """[numbers] float64 each: what may be added besides: nothing, or what stands in for attention."""
        size = self.entered[0].numel()
        instead = () if "attn_out" in self.parts else (_flat(other) for other in self.others if other.numel() == size)
        return [torch.zeros(size, dtype=torch.float64), *instead]

    def precision(self) -> float:
        """Precision of the coarsest data type among what is added, float32 at best: multipliers are fitted no better."""
        types = {torch.float32, *(tensor.dtype for tensor, *_ in (self.entered, *self.added.values()))}
        return max(torch.finfo(dtype).eps for dtype in types)

    def _entering(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Three seeds for each block, and the same ones in both passes: from one to the other a and m keep their direction and
        # only grow, so what the output moves by is linear in them. A clone goes in, for some blocks add to it in place.
        self.entered.append(_random(block_input(args, kwargs), _SIZES[0], 3 * self._index))
        return with_block_input(args, kwargs, self.entered[-1].clone())

    def _adding(self, point: Point) -> Callable[..., Any]:
        seed = 3 * self._index + 1 + list(PARTS).index(point)

        def add(part: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            self.added[point].append(_random(first_tensor(output), _SIZES[self._number], seed))
            return with_first_tensor(output, self.added[point][-1].clone())

        return add

    def _beside(self, child: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) else output
        if isinstance(tensor, Tensor):
            self.others.append(tensor.clone())

    def _leaving(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.left.append(output)


def _parts(block: nn.Module) -> dict[Point, nn.Module]:
    """The submodules at whose outputs what the block's attention and MLP add is read."""
    found: dict[Point, nn.Module] = {}
    for point in PARTS:
        try:
            found[point] = submodule(block, Site(index=0, point=point))
        except InvalidInput:
            continue  # whoever asks for this part is told so again
    return found


def _planted_pass(model: nn.Module, number: int) -> list[_Planted]:
    planted = [_Planted(block, index, number) for index, block in enumerate(decoder_blocks(model))]
    device = input_device(model)
    with ExitStack() as stack:
        for block in planted:
            block.install(stack)
        model(input_ids=torch.zeros(1, _TOKENS, dtype=torch.long, device=device), use_cache=False)
    if strange := [tensor.shape[1] for block in planted for tensor in block.entered if tensor.shape[1] != _TOKENS]:
        raise InvalidInput(
            f"{type(model).__name__} gives its blocks {strange[0]} tokens for a text of {_TOKENS}, so its hidden states cannot "
            "be told apart by tokens"
        )
    return planted


def _random(like: Tensor, size: float, seed: int) -> Tensor:
    """Normal numbers of that standard deviation and of the form, data type and device of `like`.

    Drawn on the CPU, so that they are the same on every device.
    """
    return (size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))).to(like)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double().flatten()


def _additions(small: _Planted, large: _Planted) -> Additions:
    """What was found out about one block in its two passes."""
    if not small.left:
        return Additions(0, {}, runs=False)
    length = len(small.left[0]) if isinstance(small.left[0], tuple | list) else 0
    if not small.parts:
        return Additions(length, {})
    found = small.oddity() or _multipliers(small, large)
    if isinstance(found, str):
        return Additions(length, {}, dict.fromkeys(small.parts, found))
    refusals = small.joined()
    return Additions(length, {point: number for point, number in found.items() if point not in refusals}, refusals)


def _multipliers(small: _Planted, large: _Planted) -> dict[Point, float] | str:
    """What one block multiplies its parts by, or why that cannot be told."""
    precision, out, numbers = small.precision(), large.output(), _numbers(small.block)
    change, moved = out - small.output(), large.columns() - small.columns()
    best = torch.linalg.lstsq(moved, change[:, None]).solution[:, 0].tolist()
    # The fit is true to rounding alone. The number that the block holds is exact, and hidden states are read with that.
    held = [min(numbers, key=lambda number: abs(number - fit)) for fit in best]
    multipliers = torch.tensor(held, dtype=torch.float64)
    # Closer than sums, because rounding averages out over tokens and width.
    near = all(
        abs(number - fit) <= precision * max(1.0, abs(number), float(out.std()))
        for number, fit in zip(held, best, strict=True)
    )
    off = float((change - moved @ multipliers).norm() / out.norm())
    if not near or off > _ROUNDINGS * precision:
        fits = " and ".join(f"{fit:.4g} × its {PARTS[point]}" for point, fit in zip(small.parts, best, strict=True))
        return f"it adds {fits} at best (off by {off:.1%}), which no number it holds explains"
    # Where a and m are small, whatever else is added cannot hide behind them: a third part, a norm, another stream.
    sums = small.input() + small.columns() @ multipliers
    wrong = [small.output() - sums - number * other for other in small.beside() for number in numbers]
    rest = min(float(tensor.norm()) for tensor in wrong) / float(small.output().norm())
    if rest > _ROUNDINGS * precision:
        return f"its input, attention and MLP do not add up to its output (off by {rest:.1%})"
    return dict(zip(small.parts, held, strict=True))


def _numbers(block: nn.Module) -> list[float]:
    """1 and what a block could multiply by: plain numbers it keeps, and parameters of its own that are one number."""
    # Granite keeps its `residual_multiplier` as a plain number. Whole numbers are sizes and indices, never factors.
    plain = [value for value in vars(block).values() if isinstance(value, float) and value]
    own = [*block.parameters(recurse=False), *block.buffers(recurse=False)]
    return [1.0, *plain, *(tensor.item() for tensor in own if tensor.numel() == 1 and tensor.any())]


@dataclass(frozen=True)
class HookPoint:
    """A module at whose output a site is read, and what the block multiplies that output by before it adds it."""

    module: nn.Module
    multiplier: float = 1.0
    device: torch.device | None = None
    """Where hidden states are wanted, of a model whose parts compute on several devices; None where they are."""

    def read(self, output: Any) -> Tensor:
        """The hidden state [B, T, d] in what the module returned, a tensor of its own. Raises InvalidInput."""
        # A copy, because some models (Falcon) go on to add to what a submodule returned in place.
        hidden = hidden_state(output)
        own = hidden.clone() if self.multiplier == 1 else hidden * self.multiplier
        return own if self.device is None else own.to(self.device)

    def written(self, output: Any, hidden: Tensor) -> Any:
        """What the module is to return for `hidden` [B, T, d] to be there; to rounding where it is scaled."""
        made = hidden.clone() if self.multiplier == 1 else hidden / self.multiplier
        return with_first_tensor(output, made if self.device is None else made.to(first_tensor(output).device))

    def moved(self, output: Any, delta: Tensor) -> Any:
        """What the module is to return for `delta` [B, T, d] to be added; what it does not touch keeps every bit."""
        scaled, hidden = delta if self.multiplier == 1 else delta / self.multiplier, hidden_state(output)
        return with_first_tensor(output, hidden + (scaled if self.device is None else scaled.to(hidden.device)))


@dataclass(frozen=True)
class PairedPoint(HookPoint):
    """Where both sides of an MLP are read; only what it adds could be written, at `mlp_out`."""

    entrance: nn.Module | None = None
    """The module that is given what the MLP reads."""

    def paired(self, given: Tensor, output: Any) -> Tensor:
        """[B, T, 2 d] what the MLP was given [B, T, d] and what it adds. Raises InvalidInput where the widths differ."""
        added = self.read(output)
        if given.shape != added.shape:
            raise InvalidInput(
                f"this model's MLP is given {list(given.shape)} and adds {list(added.shape)}: it has no site `mlp`"
            )
        return torch.cat([given.to(added), added], -1)

    def written(self, output: Any, hidden: Tensor) -> Any:
        """Refused. Raises InvalidInput."""
        raise InvalidInput("the two sides of an MLP cannot be replaced at once: write to `mlp_out`")

    def moved(self, output: Any, delta: Tensor) -> Any:
        """Refused. Raises InvalidInput."""
        return self.written(output, delta)


def compared_part(site: Site, states: Tensor) -> Tensor:
    """What reconstructions are compared with of the states [..., d] read at a site: at `mlp` the latter half, what is added."""
    return states[..., states.shape[-1] // 2 :] if site.point == PAIR else states


def hook_point(model: nn.Module, site: Site) -> HookPoint:
    """The place of a site, for the residual stream the block itself.

    Raises InvalidInput when the model has no such block or submodule, and when what is read there is not what the block
    adds to the residual stream. The latter is measured the first time it matters (see `additions`).
    """
    block = check_site(model, site)
    measured = additions(model)[site.index]
    if not measured.runs:
        raise InvalidInput(
            f"{type(block).__name__} (layer {site.index}) does not run on text alone, so it has no hidden states; choose "
            "another layer"
        )
    if site.point == PAIR:
        place = hook_point(model, written_at(site))
        return PairedPoint(place.module, place.multiplier, place.device, mlp_input(block))
    if site.point not in PARTS:
        return HookPoint(block)  # what a block is given and returns is the stream itself, whatever it does inside
    if refusal := measured.refusals.get(site.point):
        raise InvalidInput(
            f"{type(block).__name__} (layer {site.index}): {refusal}, so what its {PARTS[site.point]} adds to "
            "the residual stream cannot be read at its output. The residual stream works."
        )
    # A block's own output is where its input was (an adapter sees to that); its parts give theirs where they compute.
    device = input_device(model) if is_spread(model) else None
    return HookPoint(submodule(block, site), measured.multipliers[site.point], device)
