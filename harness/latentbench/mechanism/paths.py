"""Which way a vector takes to the logits: path patching in the last block, and direct logit attribution.

Path patching: a vector s at the penultimate layer perturbs what the last block reads, x → x + s. The block is run on the
steered input with parts of it computed from the plain one (Small Vectors, arXiv 2509.06608, section 7):

    no_patch        everything from x + s: steering as it is
    skip_attention  what attention adds comes from x: s acts through the residual stream, the MLP and the unembedding
    skip_layer      the whole block from x, and s added to its output: s acts on the unembedding alone
    queries, keys, values   that projection of all heads from x
    head h          head h's output from x;  only head h: every other head's output from x
    group g         the same of all heads that share their keys and values

What attention adds goes two ways, on in the residual stream and into the MLP. A mode that changes what attention adds can be
taken along one of them: the residual stream gets the changed output and the MLP reads the steered one (…_residual), or the
other way round (…_mlp). Both are the block with what its MLP adds from another pass.

The measure is KL(p_plain ‖ p_mode) at each position, in float64: what a mode keeps of no_patch's is what the paths that
are left explain. Beside it stands the entropy of each of these distributions.

Attribution: through which parts of the model does a vector raise a token's logit? At the first generated token the final
residual stream moves by Δ_L = Σ_l s_l + Σ_l (Δattn_l + Δmlp_l). To first order the logit of token t moves by g · Δ_L with g
the gradient of that logit in the final residual stream, here the mean of the gradients at the plain and at the steered end
(the trapezoid rule), so every part c of the sum gets its share g · c. What the shares leave unexplained is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from latentbench.activations.blocks import (
    attention_output,
    decoder_blocks,
    first_tensor,
    text_config,
    with_first_tensor,
)
from latentbench.activations.residual import hook_point
from latentbench.activations.resume import resumed_logits
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.injection import VectorInjection, injecting
from latentbench.interventions.intervention import Layout
from latentbench.mechanism.metrics.paths import MODES, PATHS, LogitAttribution, Mode, PathPatching
from latentbench.mechanism.metrics.study import DOMAIN
from latentbench.mechanism.output_tokens import probability_shift, token_text
from latentbench.mechanism.passages import Passages, Trace, injection_of, left_out, passages_of, trace
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

# By the names of LLaMA and its many descendants; where one matrix makes all three (GPT-2, GPT-NeoX) the mode is absent.
_PROJECTIONS = {"queries": ("q_proj",), "keys": ("k_proj",), "values": ("v_proj",)}
_OUTPUTS = ("o_proj", "dense", "c_proj", "out_proj")
"""Names of the projection whose input is the concatenation of all heads' outputs."""
_PLACES = 64
"""Positions whose probabilities exist in float64 at once."""


def measure_path_patching(study: PathPatching, context: StageContext) -> Findings:
    """KL per passage and mode of the vector at the penultimate layer; nothing but a warning where there is none."""
    lm, injection = context.model(), _penultimate(context)
    if injection is None:
        return Findings(warnings=("path_patching: there is no vector at the penultimate layer",))
    passages = passages_of(study, context)
    found = path_patching(lm, injection, passages, study.also)
    statistics = {f"path_patching.{mode}": values.numpy() for mode, values in found.modes.items()}
    statistics |= {f"path_patching.entropy.{mode}": values.numpy() for mode, values in found.entropies.items()}
    statistics["path_patching.tokens"] = found.tokens.numpy()
    absent = [mode for mode in study.modes if mode not in found.modes]
    names = [f"path_patching.{part}{mode}" for mode in absent for part in ("", "entropy.")]
    reasons = dict.fromkeys(names, "no matrix of the last block makes them alone")
    warnings = () if found.heads.shape[1] else ("path_patching: the heads of the last block cannot be told apart",)
    return Findings(
        {DOMAIN: statistics},
        details=_details(found),
        warnings=(*warnings, *left_out(study, passages)),
        reasons=reasons,
        units=study.units(context, passages.numbers),
    )


def _details(found: PathPatchingSums) -> dict[str, Json]:
    """Means over all positions, for the report."""
    total = found.tokens.sum()
    details: dict[str, Json] = {name: (values.sum(0) / total).tolist() for name, values in found.parts.items()}
    details["modes"] = {mode: float(values.sum() / total) for mode, values in found.modes.items()}
    details["positions"] = found.positions[:256].tolist()
    if found.entropies:
        details["entropies"] = {mode: float(values.sum() / total) for mode, values in found.entropies.items()}
    return details


def _penultimate(context: StageContext) -> VectorInjection | None:
    """The cell's injection with the vector of the penultimate layer alone; None without one."""
    made = injection_of(context)
    layer = len(decoder_blocks(context.model().model)) - 2
    if layer not in made.vectors.layers:
        return None
    return made.only(layer)


def measure_logit_attribution(study: LogitAttribution, context: StageContext) -> Findings:
    """Shares per passage for the token that steering boosts most often; nothing but a warning where none was written."""
    lm, injection, passages = context.model(), injection_of(context), passages_of(study, context)
    token = probability_shift(lm, injection, passages).top()
    if token is None:
        return Findings(warnings=("logit_attribution: the steered model wrote nothing",))
    found = attribution(lm, injection, passages, token)
    parts = {"direct": found.direct, "attention": found.attention, "mlp": found.mlp}
    sums = {name: values.sum(1) for name, values in parts.items()} | {"change": found.change, "rest": found.rest}
    statistics = {f"logit_attribution.{name}": values.numpy() for name, values in sums.items()}
    statistics["logit_attribution.passages"] = np.ones(len(found.change))
    layers = {name: values.mean(0).tolist() for name, values in parts.items()}
    details = {"token": token_text(lm, token), "layers": layers}
    units = study.units(context, passages.numbers)
    return Findings({DOMAIN: statistics}, details=details, warnings=left_out(study, passages), units=units)


@dataclass(frozen=True)
class PathPatchingSums:
    """KL(p_plain ‖ p_mode) summed over the positions that generated tokens are predicted from."""

    modes: dict[str, Tensor]
    """Mode to [B] float64; a mode is absent where the architecture has no such part."""
    parts: dict[str, Tensor]
    """[B, n] of single parts, by what they are: `heads` with that head's output from the plain input, `only_heads` with that
    head alone steered; `groups` and `only_groups`, and all of them with `_residual` and `_mlp`, where they are asked for. n is 0
    where heads cannot be told apart."""
    tokens: Tensor
    """[B] positions."""
    positions: Tensor
    """[P] mean KL of no_patch at the p-th generated token, NaN where no passage is that long."""
    entropies: dict[str, Tensor] = field(default_factory=dict)
    """Mode to [B] float64 entropies of its distributions, with the mode `plain`; where asked for."""

    @property
    def heads(self) -> Tensor:
        """[B, heads] with that head's output from the plain input."""
        return self.parts["heads"]

    @property
    def only_heads(self) -> Tensor:
        """[B, heads] with that head alone steered."""
        return self.parts["only_heads"]


@torch.no_grad()
def path_patching(
    lm: LanguageModel, injection: VectorInjection, passages: Passages, also: Collection[str] = ()
) -> PathPatchingSums:
    """Every mode for the injection's vector at the penultimate layer, which must be its only one.

    `also` names what is measured besides, as `PathPatching.also` does. Raises InvalidInput where a part of the block that is
    needed cannot be told from others.
    """
    batches = [_Batch(lm, injection, batch, also) for batch in passages.batches(lm)]
    return PathPatchingSums(
        _joined([batch.modes for batch in batches]),
        _joined([batch.parts for batch in batches]),
        passages.predicting.sum(1).double().cpu(),
        _by_position([(b.no_patch.kl, b.passages.predicting) for b in batches]),
        _joined([batch.entropies for batch in batches]),
    )


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


Patch = Callable[[], AbstractContextManager[None]]
"""Puts one change in place, as often as it is called."""


@dataclass(frozen=True)
class _Pass:
    """One pass of a mode."""

    kl: Tensor
    """[B, T]."""
    entropy: Tensor | None
    """[B, T], where asked for."""
    mlp: Tensor | None
    """[B, T, d] what the last block's MLP gave, where paths are told apart."""


class _Batch:
    """One batch of passages through every mode."""

    def __init__(
        self, lm: LanguageModel, injection: VectorInjection, passages: Passages, also: Collection[str] = ()
    ) -> None:
        self.lm, self.injection, self.passages, self._also = lm, injection, passages, also
        blocks = decoder_blocks(lm.model)
        hook_point(lm.model, Site(index=len(blocks) - 1))  # a block that does not run has no paths
        self.block = blocks[-1]
        self.attention = attention_output(self.block)
        # By its hook point, which is refused where something else of what the MLP adds stands beside it.
        last = Site(index=len(blocks) - 1, point="mlp_out")
        self.mlp = hook_point(lm.model, last).module if "paths" in also else None
        self.plain, self.logits = self._plain()
        self.no_patch = self._run(())
        passed = dict(self._modes())
        self.modes = {mode: self._summed(one.kl) for mode, one in passed.items()}
        self.entropies = {mode: self._summed(one.entropy) for mode, one in passed.items() if one.entropy is not None}
        if "entropies" in also:
            self.entropies["plain"] = self._summed(entropy(self.logits))
        self.parts = dict(self._parts())

    def _plain(self) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """What the plain pass computes inside the last block, by module; and its logits."""
        kept: dict[nn.Module, Tensor] = {}
        watched = [self.attention, *_named(self.block, [name for names in _PROJECTIONS.values() for name in names])]
        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_hook(_keeping_output(kept)).remove)
            if (joined := _child(self.block, _OUTPUTS)) is not None:
                stack.callback(joined.register_forward_pre_hook(_keeping_input(kept)).remove)
            return kept, trace(self.lm, self.passages).logits

    def _modes(self) -> Iterator[tuple[str, _Pass]]:
        for mode in MODES:
            if (found := self._mode(mode)) is not None:
                yield mode, found
        if "paths" in self._also:
            for path, one in self._by_path([partial(_output_patched, self.attention, self.plain[self.attention])]):
                if path:
                    yield f"skip_attention{path}", one

    def _mode(self, mode: Mode) -> _Pass | None:
        if mode == "no_patch":
            return self.no_patch
        if mode == "skip_attention":
            return self._run([partial(_output_patched, self.attention, self.plain[self.attention])])
        if mode == "skip_layer":
            # A block that reads x and an output with s added is the plain block with the vector one layer further on.
            return self._run((), layer=len(decoder_blocks(self.lm.model)) - 1)
        # A decoder that could also attend to an encoder has matrices of that name that do not run.
        found = [module for module in _named(self.block, _PROJECTIONS[mode]) if module in self.plain]
        return self._run([partial(_output_patched, one, self.plain[one]) for one in found]) if found else None

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        """Single heads, and groups of them, each patched and each alone unpatched."""
        joined, heads = _child(self.block, _OUTPUTS), _number_of_heads(self.lm)
        # The output projection reads the heads' outputs side by side, so replacing a slice of its input replaces a head. With
        # grouped queries the heads are those of the queries, and those of a group stand side by side.
        if joined is None or joined not in self.plain or not heads or self.plain[joined].shape[-1] % heads:
            joined, heads = None, 0
        counts = {"heads": heads} | ({"groups": _number_of_groups(self.lm, heads)} if "groups" in self._also else {})
        for name, count in counts.items():
            for inverse, called in ((False, name), (True, f"only_{name}")):
                yield from self._slices(joined, called, count, inverse)

    def _slices(self, joined: nn.Module | None, name: str, count: int, inverse: bool) -> Iterator[tuple[str, Tensor]]:
        columns: dict[str, list[Tensor]] = {path: [] for path in ("", *self._paths)}
        for number in range(count if joined is not None else 0):
            assert joined is not None
            plain = self.plain[joined]
            size = plain.shape[-1] // count
            chosen = torch.zeros(plain.shape[-1], dtype=torch.bool, device=plain.device)
            chosen[number * size : (number + 1) * size] = True
            patch = partial(_input_patched, joined, plain, ~chosen if inverse else chosen)
            for path, one in self._by_path([patch]):
                columns[path].append(self._summed(one.kl))
        none = torch.zeros(len(self.passages), 0, dtype=torch.float64)
        for path, found in columns.items():
            yield f"{name}{path}", torch.stack(found, 1) if found else none

    @property
    def _paths(self) -> tuple[str, ...]:
        """Endings of names for the ways that are told apart."""
        return tuple(f"_{path}" for path in PATHS) if "paths" in self._also else ()

    def _by_path(self, patches: Sequence[Patch]) -> Iterator[tuple[str, _Pass]]:
        """Patches of attention with their output going everywhere (""), and along each path alone where that is asked for."""
        everywhere = self._run(patches)
        yield "", everywhere
        if self.mlp is not None:
            assert everywhere.mlp is not None
            assert self.no_patch.mlp is not None
            # What the MLP adds depends on attention through what it reads alone, so its output stands for that.
            yield "_residual", self._run([*patches, partial(_output_patched, self.mlp, self.no_patch.mlp)])
            yield "_mlp", self._run([partial(_output_patched, self.mlp, everywhere.mlp)])

    def _run(self, patches: Sequence[Patch], layer: int | None = None) -> _Pass:
        """A pass with `patches` in place and the vector added after `layer` (default: its own)."""
        deltas, kept = self.injection.deltas, dict[nn.Module, Tensor]()
        if layer is not None:
            deltas = {layer: next(iter(deltas.values()))}
        deltas = {index: delta.to(self.lm.device) for index, delta in deltas.items()}
        layout = Layout(self.passages.prompt_lengths, self.passages.real)
        with injecting(self.lm.model, deltas, self.injection.scope, layout), ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            if self.mlp is not None:
                stack.callback(self.mlp.register_forward_hook(_keeping_output(kept)).remove)
            logits = trace(self.lm, self.passages).logits
        uncertain = entropy(logits) if "entropies" in self._also else None
        return _Pass(divergence(self.logits, logits), uncertain, None if self.mlp is None else kept[self.mlp])

    def _summed(self, values: Tensor) -> Tensor:
        return (values * self.passages.predicting).sum(1).cpu()


def divergence(plain: Tensor, other: Tensor) -> Tensor:
    """[B, T] KL(p_plain ‖ p_other) of logits [B, T, vocabulary], in float64, a few positions at a time.

    In float32 the sum over a large vocabulary is off by about 1e-6 nats, as much as a small vector changes.
    """
    parts = zip(torch.split(plain, _PLACES, 1), torch.split(other, _PLACES, 1), strict=True)
    return torch.cat([_divergence(*part) for part in parts], 1)


def _divergence(plain: Tensor, other: Tensor) -> Tensor:
    return kl_div(
        other.double().log_softmax(-1), plain.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """[B, T] −Σ_t p(t) log p(t) in nats of logits [B, T, vocabulary], in float64, a few positions at a time."""
    return torch.cat([_entropy(part.double().log_softmax(-1)) for part in torch.split(logits, _PLACES, 1)], 1)


def _entropy(logs: Tensor) -> Tensor:
    # Where a logit is −∞ its probability is 0, which adds nothing; 0 · −∞ would be no number.
    return -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)


def _by_position(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[P] mean over passages at the p-th generated token."""
    rows = [row[chosen] for kl, predicting in found for row, chosen in zip(kl, predicting, strict=True)]
    longest = max(map(len, rows), default=0)
    padded = [torch.nn.functional.pad(row, (0, longest - len(row)), value=torch.nan) for row in rows]
    return torch.stack(padded).nanmean(0).cpu() if padded else torch.zeros(0)


def _number_of_heads(lm: LanguageModel) -> int:
    """Of the last block; 0 where the configuration does not say."""
    stated = getattr(text_config(lm.model), "num_attention_heads", None)
    last = stated[-1] if isinstance(stated, list | tuple) and stated else stated
    return last if isinstance(last, int) else 0


def _number_of_groups(lm: LanguageModel, heads: int) -> int:
    """How many of the last block's heads have keys and values of their own; as many as heads where nothing else is stated.

    0 where the heads cannot be divided like that.
    """
    config = text_config(lm.model)
    stated = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    groups = stated[-1] if isinstance(stated, list | tuple) and stated else stated
    # Falcon and GPT-BigCode say that there is one group by a switch, the newer Falcons beside a number that counts instead.
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        groups = 1
    groups = groups if isinstance(groups, int) else heads
    return groups if groups and heads % groups == 0 else 0


def _named(block: nn.Module, names: Any) -> list[nn.Module]:
    """The attention's projections of these names."""
    return [module for path, module in block.named_modules() if path.rpartition(".")[2] in names]


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The attention's own projection: GPT-2's MLP has a `c_proj` too."""
    inside = [(path, module) for path, module in block.named_modules() if "att" in path]
    return next((module for name in names for path, module in inside if path.rpartition(".")[2] == name), None)


def _keeping_output(kept: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kept[module] = first_tensor(output).clone()  # what follows may write into it

    return keep


def _keeping_input(kept: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept[module] = first_tensor(args).clone()

    return keep


@contextmanager
def _output_patched(module: nn.Module, value: Tensor) -> Iterator[None]:
    def patch(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return with_first_tensor(output, value.clone())

    handle = module.register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _input_patched(module: nn.Module, value: Tensor, chosen: Tensor) -> Iterator[None]:
    """Replaces the `chosen` [width] part of what `module` reads by `value`'s."""

    def patch(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (torch.where(chosen, value, args[0]), *args[1:])

    handle = module.register_forward_pre_hook(patch)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Attribution:
    """Shares of the change of one token's logit, one row per passage."""

    token: int
    change: Tensor
    """[B] float64: the logit under steering minus the plain one."""
    direct: Tensor
    """[B, layers] from the vector of each layer itself."""
    attention: Tensor
    """[B, layers] from what each block's attention adds otherwise than before."""
    mlp: Tensor
    """[B, layers] the same for its MLP."""

    @property
    def rest(self) -> Tensor:
        """[B] what the shares do not explain."""
        return self.change - self.direct.sum(1) - self.attention.sum(1) - self.mlp.sum(1)


def attribution(lm: LanguageModel, injection: VectorInjection, passages: Passages, token: int) -> Attribution:
    """Attributes the change of the logit of `token` at the first generated token of every passage."""
    rows = [_batch(lm, injection, batch, token) for batch in passages.batches(lm)]
    change, direct, attention, mlp = (torch.cat([row[part] for row in rows]) for part in range(4))
    return Attribution(token, change, direct, attention, mlp)


def _batch(lm: LanguageModel, injection: VectorInjection, batch: Passages, token: int) -> tuple[Tensor, ...]:
    """Change [B], and the shares [B, layers] of vectors, attention and MLPs."""
    layers = len(decoder_blocks(lm.model))
    last = Site(index=layers - 1)
    sites = [last, *(Site(index=i, point=p) for i in range(layers) for p in ("attn_out", "mlp_out"))]
    steered, plain = trace(lm, batch, injection, sites), trace(lm, batch, None, sites)
    place = batch.prompt_lengths - 1
    gradient = (_gradient(lm, batch, plain, last, token) + _gradient(lm, batch, steered, last, token)) / 2
    change = _at(steered.logits, place)[:, token].double() - _at(plain.logits, place)[:, token].double()
    moved = {
        site: _at(steered.states[site], place).double() - _at(plain.states[site], place).double() for site in sites
    }
    # The first generated token is predicted from the last of the prompt, which the scope `prompt` leaves alone.
    direct = _direct(gradient, {} if injection.scope == "prompt" else injection.deltas, layers)
    parts = [
        torch.stack([(gradient * moved[Site(index=i, point=point)]).sum(1) for i in range(layers)], 1)
        for point in ("attn_out", "mlp_out")
    ]
    return change.cpu(), direct.cpu(), parts[0].cpu(), parts[1].cpu()


def _direct(gradient: Tensor, deltas: Mapping[int, Tensor], layers: int) -> Tensor:
    zero = gradient.new_zeros(len(gradient))
    columns = [gradient @ deltas[i].to(gradient) if i in deltas else zero for i in range(layers)]
    return torch.stack(columns, 1)


def _gradient(lm: LanguageModel, batch: Passages, run: Trace, last: Site, token: int) -> Tensor:
    """[B, d] float64: of the token's logit in the final residual stream of `run`."""
    hidden = run.states[last].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = resumed_logits(lm.model, last, hidden, batch.ids, batch.real.long())
        # Rows do not depend on each other, so the gradient of the sum holds the gradient of each.
        wanted = _at(logits, batch.prompt_lengths - 1)[:, token].sum()
        (gradient,) = torch.autograd.grad(wanted, hidden)
    return _at(gradient, batch.prompt_lengths - 1).double()


def _at(values: Tensor, place: Tensor) -> Tensor:
    """[B, …] the entries of [B, T, …] at one place per row."""
    return values[torch.arange(len(values), device=values.device), place]
