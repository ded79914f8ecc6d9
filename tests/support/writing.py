"""Everywhere a model writes: one call each that gives what was written, for tests that compare models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from latentbench.core.protocols import LanguageModel
from latentbench.flow.effects import write
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.intervention import Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.mechanism.passages import continuations
from latentbench_adapters.judges.transformers import _answer
from latentbench_adapters.lm_eval.steered_model import SteeredLM

PROMPTS = ("w9 w4 w4 w4", "w30", "w5 w6 w7 w8 w9 w10")
"""Of several lengths, so that a batch of them is padded."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
NEW = 6


def evaluated(lm: LanguageModel, until: tuple[str, ...] = (), new: int = NEW, **sampling: Any) -> Any:
    """As a task asks, greedily unless `sampling` says otherwise."""
    from lm_eval.api.instance import Instance

    settings = {"until": list(until), "max_gen_toks": new, "do_sample": False, **sampling}
    asked = [Instance("generate_until", {}, (prompt, settings), n) for n, prompt in enumerate(PROMPTS)]
    return [(a.text, a.tokens, a.truncated) for a in SteeredLM(lm, batch=2).answers(asked)]


def rolled_out(lm: LanguageModel, until: tuple[str, ...] = (), new: int = NEW, temperature: float = 0.0) -> Any:
    """As a training does."""
    generator = torch.Generator().manual_seed(0)
    made = answers(lm, PROMPTS, Sampling(new, temperature, until), samples=2, generator=generator)
    return [(a.text, a.ids, a.truncated) for a in made]


def _scored(lm: LanguageModel) -> Any:
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood", {}, (prompt, " w4 w8"), n) for n, prompt in enumerate(PROMPTS)]
    return SteeredLM(lm, batch=2).loglikelihood(asked, disable_tqdm=True)


def _flowed(lm: LanguageModel) -> Any:
    prompts = torch.tensor([[0, 9, 4], [0, 30, 31]])
    options: dict[str, Any] = {"tokens": NEW, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    text, _ = write(lm, prompts, Untouched(), **options)
    return text.ids.tolist(), text.loss.tolist()


def _judged(lm: LanguageModel) -> Any:
    lm.tokenizer.chat_template = TEMPLATE
    reply = _answer(lm, [{"role": "user", "content": PROMPTS[0]}], NEW, graded=True)
    return reply.text, reply.error, reply.reply_tokens


def _passages(lm: LanguageModel) -> Any:
    made = continuations(lm, Untouched(), PROMPTS, NEW)
    return [row[real].tolist() for row, real in zip(made.ids, made.real, strict=True)]


WAYS: Mapping[str, Callable[[LanguageModel], Any]] = {
    "evaluation, greedy": evaluated,
    "evaluation, sampled": lambda lm: evaluated(lm, do_sample=True, temperature=1.0),
    "evaluation, likelihoods": _scored,
    "training, greedy": rolled_out,
    "training, sampled": lambda lm: rolled_out(lm, temperature=1.0),
    "mechanism": _passages,
    "flow": _flowed,
    "judge": _judged,
}
"""What stands for a place to what is written there."""


def greedy_ids(lm: LanguageModel, prompt: str, new: int) -> list[int]:
    """The definition of greedy decoding: no cache, no padding, no stop."""
    (ids,) = prompt_ids(lm, [prompt])
    start = len(ids)
    for _ in range(new):
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids[start:]
