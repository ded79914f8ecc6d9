"""A lab by hand: a tiny random model, random documents, and an SAE whose latents follow rules that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.core.paths import Roots
from latentbench.core.progress import unwatched
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.study.context import StageContext

VOCABULARY, CONTEXT = 120, 64
SITE = Site(index=0)

Rules = Callable[[Tensor, Tensor], Tensor]
"""Token ids [N] and noise [N] in [0, 1) to dense activations [N, width]."""


def words_tokenizer() -> Any:
    """A fast tokenizer of whole words `w3` … behind three special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def random_texts(count: int, words: int = CONTEXT - 1, seed: int = 0) -> list[str]:
    """Documents of words drawn evenly."""
    drawn = torch.randint(3, VOCABULARY, (count, words), generator=torch.Generator().manual_seed(seed))
    return [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]


class RuleSAE(SparseAutoencoder):
    """Latents as `rules` say. Reads the token off the hidden state by looking for the nearest embedding."""

    def __init__(self, width: int, rules: Rules, keys: Tensor, rank: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.width, self.d_in, self._rules, self._keys = width, keys.shape[1], rules, keys
        self._rank = rank

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        tokens = torch.cdist(x, self._keys).argmin(1)
        # A function of the whole text to the left, since attention mixes a little of it into the state.
        noise = (x[:, :4].double().sum(1) * 1e5).frac().abs()
        codes = Codes.from_dense(self._rules(tokens, noise))
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return torch.zeros(len(codes.values), self.d_in)

    def decoder_rows(self) -> Tensor:
        return torch.randn(self.width, self.d_in, generator=torch.Generator().manual_seed(0))


def tiny_language_model() -> tuple[LanguageModel, Tensor]:
    """A model whose hidden state after block 0 is the token's embedding and a trace of what stands before it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        keys = torch.randn(VOCABULARY, 32)
    model.model.embed_tokens.weight.data = keys.clone()
    return LanguageModel(model, words_tokenizer(), torch.device("cpu")), keys


def lab_of(
    tmp_path: Path,
    width: int,
    rules: Rules,
    texts: Sequence[str] | None = None,
    key: str = "k" * 64,
    domain: str = "lab",
) -> StageContext:
    """A lab around a rule SAE."""
    language_model, keys = tiny_language_model()
    tokens: EvalTokens = evaluation_tokens(texts or random_texts(160), language_model.tokenizer, context=CONTEXT)
    return StageContext(
        experiment=SimpleNamespace(dataset=SimpleNamespace(eval={domain: None}), token_rule=EVERY_TOKEN),  # type: ignore[arg-type]
        key=key,
        roots=Roots(tmp_path),
        device=torch.device("cpu"),
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
        model=lambda: language_model,
        tokenizer=lambda: language_model.tokenizer,
        saes=lambda: {SITE: RuleSAE(width, rules, keys)},
        subject=lambda: None,
        tokens=lambda name: tokens,
        shared=lambda kind, payload, make: make(),
        progress=unwatched,
    )


def token_sets(width: int, size: int = 2, seed: int = 0) -> Tensor:
    """[width, size] the tokens on which each latent fires."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([3 + torch.randperm(VOCABULARY - 3, generator=generator)[:size] for _ in range(width)])


def fires_on(sets: Tensor) -> Rules:
    """Latents that fire on sets of tokens [width, size] with strengths between 1 and 2."""

    def rules(tokens: Tensor, noise: Tensor) -> Tensor:
        hit = (tokens[:, None, None] == sets).any(2)
        return hit * (1 + noise[:, None]).float()

    return rules


def fires_at_random(width: int, density: float) -> Rules:
    """Latents that fire on a share of all tokens, whatever they are."""

    def rules(tokens: Tensor, noise: Tensor) -> Tensor:
        own = (noise[:, None] * torch.arange(7919, 7919 + 2 * width, 2)).frac()
        return (own < density) * (1 + own / density).float()

    return rules
