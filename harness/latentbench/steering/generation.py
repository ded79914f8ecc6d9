"""Plain generation: transformers' `generate()` with what is stated here and nothing else.

A model brings a `generation_config.json`, and `generate()` fills whatever the caller leaves open from it: beams, penalties,
forbidden or forced tokens, another cache, another form of the result. Answers would then depend on a file beside the
weights, and training, whose rollouts are written by a loop of its own (`latentbench.steering.rollouts`), would sample another
policy than the one that is evaluated. Only its end tokens are kept, because chat models list several there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from latentbench.activations.capture import positions
from latentbench.activations.vocabulary import end_ids, padding_of
from latentbench.errors import InvalidInput
from latentbench.section import Json
from latentbench_adapters.protocols import LanguageModel

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_STATED = ("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "use_cache")
"""Usual in a model's generation config and without consequence: they are about sampling, which callers state in full."""


@torch.no_grad()
def generate(
    lm: LanguageModel,
    ids: Tensor,
    mask: Tensor,
    *,
    ends: Sequence[int] | None = None,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriteria] = (),
    **stated: Any,
) -> Any:
    """What `generate()` gives for prompts `ids` [B, T] with mask [B, T], padded on the left.

    `ends` are the ids that end a row (default: the model's own), `stated` are fields of transformers' GenerationConfig;
    without any, decoding is greedy. The model is afterwards as it was.
    """
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=sorted(end_ids(lm) if ends is None else ends) or None,
        pad_token_id=padding_of(lm),
        use_cache=True,
        **{"do_sample": False, **stated},
    )
    model: Any = lm.model
    with _without_defaults(model):
        return model.generate(  # looked up here, because interventions may watch it
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(criteria),
        )


def left_out(lm: LanguageModel) -> dict[str, Json]:
    """Settings of the model's own generation config that would change greedy answers, by name; they are not applied."""
    own: dict[str, Json] = lm.model.generation_config.to_diff_dict()
    neutral: dict[str, Any] = GenerationConfig._get_default_generation_params()
    return {
        name: value
        for name, value in sorted(own.items())
        if name not in (*_IDS, *_STATED, "transformers_version", "_from_model_config")
        and value not in (None, False, neutral.get(name))
    }


def check_room(model: Any, prompt: int, new: int) -> None:
    """Raises InvalidInput where `new` tokens after `prompt` do not fit into a loaded model's context."""
    room = positions(model)
    if room is not None and prompt + new > room:
        raise InvalidInput(
            f"{new} new tokens after a prompt of {prompt} do not fit into the context of {room} that "
            f"{type(model).__name__} has; ask for fewer, or shorten the prompts"
        )


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """While open, the model's generation config says nothing that `generate()` could fill in."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own
