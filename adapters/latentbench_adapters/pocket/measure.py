"""Measure a pocket model: `python -m latentbench_adapters.pocket.measure [MODEL_DIR]` prints JSON.

Cross-entropies are in nats per token over held-out documents, each scored from `<|bos|>` to the `<|bos|>`
that ends it; accuracies are fractions of held-out word problems whose last number is the right answer.
"""

from __future__ import annotations

import argparse
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latentbench_adapters.pocket import MODEL_FOLDER, text
from latentbench_adapters.pocket.recipe import BOS_ID, LATE, PAD_ID, Mixture
from latentbench_adapters.pocket.text.arithmetic import LEAD

DOCUMENTS = 200  # per domain
PROBLEMS = 512
COUNTED_TOKENS = 1_500_000  # that the unigram and bigram models are fitted on
PRIORS = (0.3, 1.0, 3.0, 10.0, 30.0)  # pseudo-counts tried for the bigram model
_INTEGER = re.compile(r"\d+")


def measure(folder: Path) -> dict[str, Any]:
    """All numbers of the model card for the model saved in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "counted_tokens": COUNTED_TOKENS,
        "cross_entropy": cross_entropies(model, tokenizer),
        "word_problems": {"n": PROBLEMS, **word_problem_accuracies(model, tokenizer)},
    }


def cross_entropies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Per domain: nats per token of the model and of unigram and bigram models of the training text."""
    ngrams = Ngrams(tokenizer, model.config.vocab_size)
    rows: dict[str, dict[str, float]] = {}
    for domain in text.DOMAINS:
        documents = [
            torch.tensor([*tokenizer(document)["input_ids"], BOS_ID])
            for document in islice(text.documents(domain, "eval"), DOCUMENTS)
        ]
        rows[domain] = {"model": _model_nats(model, documents), **ngrams.nats(documents)}
        rows[domain] |= {"documents": len(documents), "tokens": sum(len(ids) - 1 for ids in documents)}
    return rows


@torch.no_grad()
def _model_nats(model: PreTrainedModel, documents: list[torch.Tensor]) -> float:
    """Mean over all predicted tokens of all documents, each `[length]`, run one at a time (no padding)."""
    losses = [
        F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none") for ids in documents
    ]
    return float(torch.cat(losses).mean())


class Ngrams:
    """Unigram and bigram counts of the training mixture; the bigram backs off to the unigram."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        ids = _training_ids(tokenizer)
        pairs = torch.bincount(ids[:-1] * vocabulary + ids[1:], minlength=vocabulary**2)
        self.pairs = pairs.view(vocabulary, vocabulary).double()
        smoothed = torch.bincount(ids, minlength=vocabulary).double() + 0.5
        self.unigram = smoothed / smoothed.sum()

    def nats(self, documents: list[torch.Tensor]) -> dict[str, float]:
        """Nats per token; the pseudo-count is the one that suits the bigram model best on these documents."""
        before = torch.cat([ids[:-1] for ids in documents])
        after = torch.cat([ids[1:] for ids in documents])
        bigram = min(self._bigram_nats(before, after, prior) for prior in PRIORS)
        return {"unigram": float(-self.unigram[after].log().mean()), "bigram": bigram}

    def _bigram_nats(self, before: torch.Tensor, after: torch.Tensor, prior: float) -> float:
        seen, total = self.pairs[before, after], self.pairs.sum(1)[before]
        return float(-((seen + prior * self.unigram[after]) / (total + prior)).log().mean())


def _training_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The first `COUNTED_TOKENS` ids of the late training mixture, documents joined by `<|bos|>`."""
    mixture, ids = Mixture(seed=0), list[int]()
    while len(ids) < COUNTED_TOKENS:
        for encoded in tokenizer([mixture.draw(**LATE) for _ in range(1000)])["input_ids"]:
            ids += encoded
    return torch.tensor(ids[:COUNTED_TOKENS])


def word_problem_accuracies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Accuracy when answering freely (greedy, and sampled at temperature 1) and when led to go step by step."""
    drawn = list(islice(text.problems("eval"), PROBLEMS))
    questions, answers = [p.question for p in drawn], [p.answer for p in drawn]
    greedy = _continuations(model, tokenizer, questions)
    torch.manual_seed(0)
    sampled = _continuations(model, tokenizer, questions, do_sample=True, temperature=1.0, top_k=0)
    led = _continuations(model, tokenizer, [question + LEAD for question in questions])
    return {
        "greedy_accuracy": _accuracy(greedy, answers),
        "greedy_steps_share": _steps_share(greedy),
        "sampled_accuracy": _accuracy(sampled, answers),
        "sampled_steps_share": _steps_share(sampled),
        "led_accuracy": _accuracy(led, answers),
    }


@torch.no_grad()
def _continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **options: Any
) -> list[str]:
    """What the model writes after each prompt, up to `<|bos|>`; greedy unless `options` say otherwise."""
    tokenizer.padding_side = "left"
    generate: Any = model.generate
    texts: list[str] = []
    for first in range(0, len(prompts), 128):
        batch = tokenizer(prompts[first : first + 128], return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        settings = {"max_new_tokens": 128, "eos_token_id": BOS_ID, "pad_token_id": PAD_ID, "do_sample": False}
        out = generate(input_ids=ids, attention_mask=mask, **(settings | options))
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def _accuracy(texts: list[str], answers: list[int]) -> float:
    right = [_INTEGER.findall(said)[-1:] == [str(answer)] for said, answer in zip(texts, answers, strict=True)]
    return sum(right) / len(right)


def _steps_share(texts: list[str]) -> float:
    return sum(said.startswith(LEAD) for said in texts) / len(texts)


def main() -> None:
    """Measure the model in the given folder, or the shipped one."""
    parser = argparse.ArgumentParser(
        prog="python -m latentbench_adapters.pocket.measure", description="Measure a pocket model."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_FOLDER)
    print(json.dumps(measure(parser.parse_args().folder), indent=2))


if __name__ == "__main__":
    main()
