"""Tiny random language models of several architectures, and a lab around them, for tests of steering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen2Config

from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, Problem, ProblemSet
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.study.context import StageContext
from tests.support.labs import VOCABULARY, words_tokenizer

WIDTH, LAYERS = 16, 3
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
ENDS = {"eos_token_id": 1, "bos_token_id": 0}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, **ENDS, intermediate_size=24, num_key_value_heads=1),
    "qwen2": Qwen2Config(**SHAPE, **ENDS, intermediate_size=24, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SHAPE, **ENDS, intermediate_size=24),
    "gpt2": GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=2, vocab_size=VOCABULARY, **ENDS),
}


CPU = torch.device("cpu")


def language_model(
    name: str, dtype: torch.dtype = torch.float64, seed: int = 0, device: torch.device = CPU
) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(CONFIGS[name])
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return LanguageModel(model.to(device, dtype).eval().requires_grad_(False), words_tokenizer(), device)


class Killed(BaseException):
    """The process dies."""


class WordProblems(ProblemSet):
    """Prompts of one to three words; the answer is a word."""

    adapter: Literal["words"] = "words"

    def identity(self, roots: Roots) -> Any:
        return "words"

    def problems(self, roots: Roots) -> Iterator[Problem]:
        for i in range(40):
            yield Problem(" ".join(f"w{3 + (7 * i + j) % 110}" for j in range(1 + i % 3)), str(i))


def lab(lm: LanguageModel, folder: Path, kill_at: int | None = None, model: Any = None) -> StageContext:
    def progress(done: float, steps: float, unit: str = "steps", **told: Any) -> None:
        if done == kill_at:
            raise Killed

    return StageContext(
        experiment=SimpleNamespace(model=model, dataset=SimpleNamespace(eval={}), token_rule=EVERY_TOKEN),  # type: ignore[arg-type]
        key="key",
        roots=Roots(folder),
        device=lm.device,
        scratch=folder / "scratch",
        cache=folder / "cache",
        model=lambda: lm,
        tokenizer=lambda: lm.tokenizer,
        saes=dict,
        subject=lambda: None,
        tokens=lambda domain: None,  # type: ignore[arg-type, return-value]
        shared=lambda kind, payload, make: make(),
        progress=progress,
    )
