"""Sampling texts under an intervention, and what they and other texts cost the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.activations.tokens import real_mask, special_mask
from latentbench.flow.activity import TOKENS_PER_FORWARD, Texts
from latentbench.flow.studies.rerun import losses_from
from latentbench.metrics.base import Array
from latentbench.steering.generation import check_room, generate
from latentbench.steering.intervention import Intervention, Layout, Receipt
from latentbench_adapters.protocols import LanguageModel

PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Written:
    """Prompts with what the model wrote after them."""

    ids: Tensor
    """[prompts, T] int64, on the CPU: prompt and text."""
    ordinary: Tensor
    """[prompts, T] bool, on the CPU: generated and not special."""
    loss: Array
    """[prompts]: cross-entropy of the generated tokens under the untouched model, summed."""
    counts: Array
    """[prompts]: tokens that `loss` is summed over."""

    def generated(self) -> list[NDArray[np.int64]]:
        """Ordinary generated tokens of each text."""
        return [row[mask].numpy() for row, mask in zip(self.ids, self.ordinary, strict=True)]

    def decoded(self, tokenizer: Any) -> list[str]:
        """Prompt and text together, as people read them."""
        return [str(text) for text in tokenizer.batch_decode(self.ids, skip_special_tokens=True)]


def write(
    lm: LanguageModel,
    prompts: Tensor,
    intervention: Intervention,
    *,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> tuple[Written, Receipt]:
    """Samples `tokens` tokens after each of `prompts` [N, P]; the same random numbers whatever the intervention.

    Raises InvalidInput where they do not fit into the model's context.
    """
    check_room(lm.model, prompts.shape[1], tokens)
    parts, receipt = [], Receipt()
    for number, part in enumerate(torch.split(prompts, PROMPTS_AT_ONCE)):
        with torch.random.fork_rng(devices=_devices(lm)), intervention.applied(lm) as one:
            torch.manual_seed(seed + number)
            ids = generate(
                lm,
                part,
                torch.ones_like(part),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
            )
        parts.append(_written(lm, ids, prompts.shape[1]))
        receipt = receipt + one
    return _joined(parts), receipt


def losses(lm: LanguageModel, texts: Texts, intervention: Intervention) -> tuple[Array, Array]:
    """[rows] each: cross-entropy summed over every prediction of a document under the intervention, and their number."""
    context = texts.ids.shape[1]
    step = max(1, TOKENS_PER_FORWARD // context)
    found = []
    for start in range(0, len(texts.ids), step):
        ids = texts.ids[start : start + step].to(lm.device).long()
        real = real_mask(texts.lengths[start : start + step], context).to(lm.device)
        with intervention.applied(lm, Layout(real=real)):
            logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        found.append(losses_from(logits, ids, real, torch.zeros(len(ids), dtype=torch.int64, device=lm.device)).cpu())
    return torch.cat(found).numpy(), (texts.lengths - 1).double().numpy()


def _written(lm: LanguageModel, ids: Tensor, prompt: int) -> Written:
    real = torch.ones_like(ids, dtype=torch.bool)
    logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    start = torch.full((len(ids),), prompt - 1, device=ids.device)
    loss = losses_from(logits, ids, real, start).cpu().numpy()
    ordinary = ~special_mask(ids, lm.tokenizer)
    ordinary[:, :prompt] = False
    counts = np.full(len(ids), float(ids.shape[1] - prompt))
    return Written(ids.cpu(), ordinary.cpu(), loss, counts)


def _joined(parts: Sequence[Written]) -> Written:
    ids, ordinary = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "ordinary"))
    loss, counts = (np.concatenate([getattr(part, name) for part in parts]) for name in ("loss", "counts"))
    return Written(ids, ordinary, loss, counts)


def _devices(lm: LanguageModel) -> list[Any]:
    return [lm.device] if lm.device.type == "cuda" else []
