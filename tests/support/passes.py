"""A small model, documents and SAEs for passes that measure."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from latentbench.activations.tokens import EvalTokens
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from tests.support.massive import plant

BOS, CONTEXT, D, VOCABULARY = 0, 14, 16, 60
MIDDLE, LAST, MLP, ATTENTION = (
    Site(index=1),
    Site(index=2),
    Site(index=1, point="mlp_out"),
    Site(index=0, point="attn_out"),
)
TOKENIZER = SimpleNamespace(bos_token_id=BOS, eos_token_id=1, pad_token_id=None, sep_token_id=None, cls_token_id=None)


def language_model(config=None) -> LanguageModel:
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel(model, TOKENIZER, torch.device("cpu"))


def documents(count: int = 9, seed: int = 0) -> EvalTokens:
    """Documents of different lengths behind BOS, some ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, CONTEXT + 1, (count,), generator=generator)
    lengths[1], lengths[2] = 2, CONTEXT
    ids = torch.randint(2, VOCABULARY, (count, CONTEXT), generator=generator)
    ids[:, 0] = BOS
    ids[2, -1] = 1
    ids[torch.arange(CONTEXT) >= lengths[:, None]] = 1
    return EvalTokens(ids.int(), lengths.int(), tuple(f"{n:016x}" for n in range(count)), 0)


def planted(config=None) -> LanguageModel:
    """`language_model` with the word `MASSIVE` massive in its residual stream, and words with names."""
    made = language_model(config)
    plant(made.model, MASSIVE, 2000)
    names = {f"w{token}": token for token in range(VOCABULARY)}
    named = SimpleNamespace(**vars(made.tokenizer), get_vocab=lambda: names)
    return LanguageModel(made.model, named, made.device)


class ToySAE(SparseAutoencoder):
    """The k largest of 24 random latents."""

    def __init__(self, seed: int = 0, k: int = 4) -> None:
        super().__init__()
        self.d_in, self.width, self.k = D, 24, k
        weights = torch.randn(2, D, 24, generator=torch.Generator().manual_seed(seed)) / 4
        self.encoder, self.decoder = weights[0], weights[1].T

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        values, indices = (x @ self.encoder).relu().topk(budget or self.k, dim=-1)
        return Codes(values, indices)

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense(self.width) @ self.decoder


class Identity(ToySAE):
    """Gives back what it gets."""

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return Codes(x, torch.arange(D).expand(len(x), D))

    def decode(self, codes: Codes) -> Tensor:
        return codes.values


class BrokenSAE(ToySAE):
    """Fails in its second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def decode(self, codes: Codes) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise ArithmeticError("second batch")
        return super().decode(codes)


LM, TOKENS = language_model(), documents()
MASSIVE, NAMED = TOKENS.ids[2, 3:5].tolist()
"""Two words of the longest document."""


def flat(results: PassResults) -> dict[str, np.ndarray]:
    """All statistics of a pass under one roof."""
    found = {f"{site}/{name}": v for site, b in results.baselines.items() for name, v in b.statistics.items()}
    found |= {f"{site}/mean": b.mean for site, b in results.baselines.items()}
    for m in results.measurements:
        found |= {f"{m.name}/{name}": v for name, v in m.statistics.items()}
        found |= {f"{m.name}/{m.budget}/firing": m.firing}
    return found


def requests() -> list[MeasurementRequest]:
    return [
        MeasurementRequest("a", ToySAE(1), MIDDLE, (None, 2), splice=True),
        MeasurementRequest("b", ToySAE(2), MIDDLE, (None, 1)),
        MeasurementRequest("c", ToySAE(3), LAST, splice=True),
        MeasurementRequest("d", ToySAE(4), MLP, splice=True),
    ]
