"""How a loaded model can write: which ways give the logits that passes without a cache give, measured once per model.

A cache is a promise that a token read after a kept state says what it says after its whole text. Attention keeps it row by
row. State-space layers, convolutions and linear attention keep one state per row instead, which cannot always be repeated
for several samples, thinned out, or told that a row begins with padding; some models fail at that and some say something
else without failing. So a few tokens are forced upon a model, the same in every way, and their logits are compared with
those of passes over each row alone, unpadded and without a cache. Random tokens tell as well as text would: what is
compared is whether the same products are formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from latentbench.activations.fitting import out_of_memory
from latentbench.activations.measured_once import once_per_model
from latentbench.activations.vocabulary import embedding_rows, end_ids, padding_of
from latentbench.core.border import contained, reason
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.cached_steps import cached_steps
from latentbench.interventions.continuous_steps import continuous_steps
from latentbench.interventions.generation import Drawing, generate, left_padded
from latentbench.interventions.intervention import Layout

GenerateWay = Literal["padded", "equal lengths"]
"""How `generate()` may be called: with prompts of any length, padded on the left, or with prompts of one length."""
RolloutWay = Literal["cached", "padded", "equal lengths"]
"""By our own steps, or by `generate()`."""
ContinuousWay = Literal["shared", "continuous"]
"""With what is kept of a prompt shared by its samples, or with each row for itself."""
Way = Literal[RolloutWay, ContinuousWay]

_SAMPLES, _STEPS, _COPIES = 2, 4, 8
_LENGTHS: Mapping[Way, tuple[int, ...]] = {
    "cached": (3, 5),
    "shared": (3, 5, 4),
    "continuous": (3, 5, 4),
    "padded": (3, 5),
    "equal lengths": (5, 5),
}
"""Tokens of the prompts."""


def rollout_way(lm: LanguageModel) -> RolloutWay:
    """How many answers at a time are written. Raises InvalidInput for a model that cannot write in any way."""
    return "cached" if _objection(lm, "cached") is None else generate_way(lm)


def continuous_way(lm: LanguageModel) -> ContinuousWay | None:
    """How answers can be written by rows that come and go; None where they cannot."""
    ways: tuple[ContinuousWay, ...] = ("shared", "continuous")
    return next((way for way in ways if _objection(lm, way) is None), None)


def generate_way(lm: LanguageModel) -> GenerateWay:
    """How `generate()` may be called. Raises InvalidInput for a model that it does not write with."""
    ways: tuple[GenerateWay, ...] = ("padded", "equal lengths")
    found = next((way for way in ways if _objection(lm, way) is None), None)
    if found is None:
        raise InvalidInput(
            f"{type(lm.model).__name__} cannot write: {_objection(lm, 'equal lengths')}; take another model, or another "
            "version of transformers"
        )
    return found


def check_trainable_rollouts(lm: LanguageModel) -> None:
    """Raises InvalidInput for a model whose own answers cannot be trained on, which are read again padded on the left."""
    if rollout_way(lm) == "equal lengths":
        raise InvalidInput(
            f"{type(lm.model).__name__} cannot be trained on its own answers: they are read in batches padded on the left, "
            f"and of such prompts {_objection(lm, 'padded')}; take another model"
        )


@once_per_model
def _objection(lm: LanguageModel, way: Way) -> str | None:
    """What speaks against a way, as a part of a sentence; None where nothing does."""
    prompts, forced = _texts(lm, _LENGTHS[way])
    seen = _Forced(forced)
    try:
        if way == "cached":
            _by_steps(lm, prompts, seen)
        elif way in ("shared", "continuous"):
            _continuously(lm, prompts, seen, shared=way == "shared")
        else:
            _by_generate(lm, prompts, seen)
    except BaseException as error:
        if out_of_memory(error):
            raise
        return f"its cache cannot be used ({reason(contained(error))})"
    return _difference(lm, prompts, seen)


class _Forced:
    """Draws the tokens that are forced upon each row, and keeps the logits that they might have been drawn from."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        """[rows, steps] int64."""
        self.logits: dict[int, list[Tensor]] = {row: [] for row in range(len(tokens))}

    def draw(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Next tokens [B, 1] of some rows."""
        steps = [min(len(self.logits[row]), self.tokens.shape[1] - 1) for row in rows]
        for row, own in zip(rows, logits, strict=True):
            self.logits[row].append(own.float().cpu())
        return self.tokens[list(rows), steps][:, None].to(logits.device)


def _by_steps(lm: LanguageModel, prompts: Sequence[Sequence[int]], forced: _Forced) -> None:
    over, layout = [False] * len(forced.tokens), Layout()
    steps = cached_steps(lm, prompts, forced.draw, over, most=_STEPS, samples=_SAMPLES, layout=layout)
    for number, _ in enumerate(steps):
        over[0] = number == 1  # so that it is dropped before the third step: its neighbours must keep their own states


def _continuously(lm: LanguageModel, prompts: Sequence[Sequence[int]], forced: _Forced, *, shared: bool) -> None:
    over = [False] * len(forced.tokens)
    # Two prompts first; of the longer one a row is over after two tokens, the other goes on beside the third prompt.
    places = 2 * _SAMPLES
    steps = continuous_steps(
        lm, prompts, forced.draw, over, places=places, samples=_SAMPLES, layout=Layout(), shared=shared
    )
    for rows, _ in steps:
        for row in rows:
            over[row] = len(forced.logits[row]) == (2 if row in (0, 2) else _STEPS)


def _by_generate(lm: LanguageModel, prompts: Sequence[Sequence[int]], forced: _Forced) -> None:
    rows = [prompt for prompt in prompts for _ in range(_SAMPLES)]
    ids, mask = left_padded(rows, padding_of(lm), lm.device)
    drawing = Drawing(lambda scores: forced.draw(scores, range(len(rows))))
    generate(lm, ids, mask, ends=(), processors=[drawing], max_new_tokens=_STEPS)


def _texts(lm: LanguageModel, lengths: Sequence[int]) -> tuple[list[list[int]], Tensor]:
    """Prompts, and tokens [rows, steps] to force behind them; neither holds a token that means something to the model."""
    special = {padding_of(lm), *end_ids(lm), *(getattr(lm.tokenizer, "all_special_ids", None) or ())}
    head: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    known = min(embedding_rows(lm.model), *getattr(getattr(head, "weight", None), "shape", [1000])[:1], 1000)
    plain = [token for token in range(known) if token not in special] or [0]
    # On the CPU and from a seed of its own: nothing that is drawn elsewhere may depend on whether this has been asked.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(plain), (sum(lengths) + len(lengths) * _SAMPLES * _STEPS,), generator=generator)
    stream = iter([plain[number] for number in drawn.tolist()])
    prompts = [[next(stream) for _ in range(length)] for length in lengths]
    return prompts, torch.tensor(list(stream)).view(-1, _STEPS)


def _difference(lm: LanguageModel, prompts: Sequence[Sequence[int]], forced: _Forced) -> str | None:
    """Where a row's logits are not those of a pass without a cache. None as well where those are no numbers."""
    for row, logits in forced.logits.items():
        prompt, tokens = prompts[row // _SAMPLES], forced.tokens[row, : len(logits) - 1].tolist()
        ids = torch.tensor([[*prompt, *tokens]], device=lm.device)
        expected, again = (_uncached(lm, ids.repeat(copies, 1))[len(prompt) - 1 :] for copies in (1, _COPIES))
        off = _relative(torch.stack(logits), expected)
        # Half of the digits of the data type: rounding costs fewer, another text costs all. What rounding costs this model is
        # seen from the same tokens in a larger batch, which are added up in another order.
        allowed = max(float(torch.finfo(lm.model.dtype).eps) ** 0.5, 4 * _relative(again, expected))
        if expected.isfinite().all() and not off <= allowed:
            return (
                f"with its cache it does not say what it says without (its logits are off by {off:.2g} of their size)"
            )
    return None


def _uncached(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Logits [T, vocabulary] of the first of equal rows [B, T]."""
    output: Any = lm.model(input_ids=ids, use_cache=False)
    logits: Tensor = output.logits[0]
    return logits.float().cpu()


def _relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ of logits [steps, vocabulary], centred, as only differences count; the median step's."""
    # The median: a mixture of experts that rounds to another expert at one token does not have a wrong cache, while one that
    # loses a state or a position is wrong from then on.
    error, size = ((one - one.mean(-1, keepdim=True)).norm(dim=-1) for one in (found - expected, expected))
    return float((error / size.clamp_min(1e-30)).median())
