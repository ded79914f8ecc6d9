"""Texts that the steered model wrote, and what it and the unsteered model compute over the very same tokens.

Everything in this package compares two passes over one text, so that a difference is the vector's doing and not another
continuation's. `passages_of` and `injection_of` give a study the text and the vectors of its cell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentbench.activations.blocks import decoder_blocks, hidden_state
from latentbench.activations.capture import capturing
from latentbench.activations.vocabulary import padding_of
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.changes import PLAIN
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Layout, Stack, Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.study.context import StageContext

ROWS = 16
"""Most texts per forward pass."""
NUMBERS = 2**27
"""Most numbers in what a pass keeps, half a GiB in float32; one text is always taken."""


@dataclass(frozen=True)
class Passages:
    """Prompts with what the steered model wrote after them.

    Padded on the right, where causal attention hides it and a token's column is its position.
    """

    ids: Tensor
    """[B, T] token ids."""
    real: Tensor
    """[B, T] bool: no padding."""
    prompt_lengths: Tensor
    """[B] tokens of each prompt."""
    numbers: tuple[int, ...] | None = None
    """[B] which of the prompts these are; None: all of them."""
    left_out: int = 0
    """Prompts whose continuations are not among these."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicting(self) -> Tensor:
        """[B, T] bool: tokens that a generated token is predicted from, the last of the prompt first."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        followed = torch.zeros_like(self.real)
        followed[:, :-1] = self.real[:, 1:]
        return (places >= self.prompt_lengths[:, None] - 1) & followed

    @property
    def first(self) -> Tensor:
        """[B, T] bool: the token that the first generated token is predicted from."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (places == self.prompt_lengths[:, None] - 1) & self.predicting

    def batches(self, lm: LanguageModel, more: int = 0) -> Iterator[Passages]:
        """Rows in groups whose pass is of bounded size, keeping logits and `more` numbers per token; no needless padding."""
        logits = int(lm.model.get_output_embeddings().weight.shape[0])  # type: ignore[no-untyped-call]
        count = max(1, min(ROWS, NUMBERS // ((logits + more) * self.ids.shape[1])))
        for start in range(0, len(self), count):
            rows = slice(start, start + count)
            length = int(self.real[rows].sum(1).max())
            yield Passages(self.ids[rows, :length], self.real[rows, :length], self.prompt_lengths[rows])


@dataclass(frozen=True)
class Trace:
    """One pass over passages."""

    logits: Tensor
    """[B, T, vocabulary]."""
    states: dict[Site, Tensor]
    """Hidden states [B, T, d] at the sites asked for."""
    attentions: tuple[Tensor, ...] = ()
    """Per layer [B, heads, T, T], where asked for."""
    arriving: dict[int, Tensor] = field(default_factory=dict)
    """Where asked for, what the blocks put out before anything is added to it: layer to [B, T, d]."""


def passages_of(study: MechanismStudy, context: StageContext, subject: Intervention | None = None) -> Passages:
    """What the model writes after the prompts of a study's problems, steered as in the cell, or by `subject`.

    Raises InvalidInput where only ended continuations are wanted and none ends.
    """
    lm, prompts = context.model(), [problem.prompt for problem in study.asked(context)]
    found = continuations(
        lm,
        subject or context.subject(),
        prompts,
        study.new_tokens,
        temperature=study.temperature,
        seed=context.seed("passages"),  # one for all vectors, so that texts differ in what the vectors do
        only_ended=study.only_ended,
    )
    if len(found):
        return found
    raise InvalidInput(
        f"{study.metric}: none of {len(prompts)} continuations ended within {study.new_tokens} tokens; raise `new_tokens`, "
        "or leave `only_ended` out"
    )


def left_out(study: MechanismStudy, passages: Passages) -> tuple[str, ...]:
    """What a reader must know of the passages: how many of the continuations are none."""
    every = len(passages) + passages.left_out
    said = f"{study.metric}: {passages.left_out} of {every} continuations did not end within {study.new_tokens} tokens"
    return (f"{said} and are left out",) if passages.left_out else ()


def injection_of(context: StageContext) -> VectorInjection:
    """The cell's vectors, those of a stack summed by layer. Raises InvalidInput when it steers by something else."""
    made = context.subject()
    if isinstance(made, VectorInjection) and made.use == PLAIN:
        return made
    parts = made.parts if isinstance(made, Stack) else ()
    adding = [part for part in parts if isinstance(part, VectorInjection) and part.use == PLAIN]
    if not adding or len(adding) < len(parts) or len({part.scope for part in adding}) > 1:
        raise InvalidInput("this cell adds no vectors at the same tokens, so there is no mechanism of them to look at")
    # Added at the same tokens, two vectors of a layer are one: their sum, at the scales that the parts have.
    sums: dict[int, Tensor] = {}
    for layer, delta in (pair for part in adding for pair in part.deltas.items()):
        sums[layer] = sums[layer] + delta if layer in sums else delta
    return VectorInjection(SteeringVectors(sums), scope=adding[0].scope)


@torch.no_grad()
def continuations(
    lm: LanguageModel,
    intervention: Intervention,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    only_ended: bool = False,
) -> Passages:
    """Continuations under `intervention`, up to `new_tokens` tokens or the end of the text: greedy ones, or drawn at
    `temperature` with a generator of `seed`. With `only_ended` those are left out that did not end by themselves; there may be
    none left.
    """
    prefixed, layout = [prompt + intervention.prefix for prompt in prompts], Layout()
    generator = torch.Generator(lm.device).manual_seed(seed) if temperature else None
    with intervention.applied(lm, layout):
        answered = answers(lm, prefixed, Sampling(new_tokens, temperature), generator=generator, layout=layout)
    kept = [number for number, answer in enumerate(answered) if not (only_ended and answer.truncated)]
    # The very ids that were written: text tokenised again could be cut elsewhere, and then it is another passage.
    starts = prompt_ids(lm, prefixed)
    rows = [[*starts[number], *answered[number].ids] for number in kept]
    longest, padding = max(map(len, rows), default=0), padding_of(lm)
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.long)
    real = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
    lengths = torch.tensor([len(starts[number]) for number in kept], device=lm.device)
    chosen = tuple(kept) if only_ended else None
    return Passages(ids.to(lm.device), real.to(lm.device), lengths, chosen, len(prompts) - len(kept))


@torch.no_grad()
def trace(
    lm: LanguageModel,
    passages: Passages,
    intervention: Intervention | None = None,
    sites: Collection[Site] = (),
    attentions: bool = False,
    arriving: Collection[int] = (),
) -> Trace:
    """A pass over one batch of passages, steered by `intervention` or plain."""
    layout = Layout(passages.prompt_lengths, passages.real)
    with (
        (intervention or Untouched()).applied(lm, layout),
        capturing(lm.model, sites) as states,
        _before_all_others(lm, arriving) as before,
    ):
        output = lm.model(
            input_ids=passages.ids,
            attention_mask=passages.real.long(),
            use_cache=False,
            output_attentions=attentions,
        )
    patterns = tuple(getattr(output, "attentions", None) or ()) if attentions else ()
    return Trace(output.logits, dict(states), patterns, before)


@contextmanager
def _before_all_others(lm: LanguageModel, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """While open, every pass leaves here what the blocks `layers` put out, before any other hook has changed it.

    Steering prepends its hooks, so this one, prepended after it, sees the block's own output.
    """
    found: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable[..., None]:
        def keep(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found[layer] = hidden_state(output).clone()  # the next block may write into it

        return keep

    blocks = decoder_blocks(lm.model)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(keeping(layer), prepend=True).remove)
        yield found


@contextmanager
def eager_attention(lm: LanguageModel) -> Iterator[None]:
    """While open, attention is computed in the plain form that holds its patterns; fused kernels never do."""
    # Every tower of a model has a configuration of its own, and the one of the whole sets those below it.
    parts = [part.config for part in lm.model.modules() if isinstance(part, PreTrainedModel)]
    before = [(config, config._attn_implementation) for config in parts]
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
