"""Rebuild the pocket model from nothing: `python -m latentbench_adapters.pocket.build`.

Tokenizer: byte-level BPE in which every digit is a token of its own. Training: packed rows, AdamW, warm-up and cosine,
resumable checkpoints without pickle.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentbench_adapters.pocket import MODEL_FOLDER
from latentbench_adapters.pocket.recipe import (
    BOS,
    BOS_ID,
    CONTEXT,
    LATE,
    MODEL,
    PAD,
    PAD_ID,
    TOKENIZER_DOCUMENTS,
    VOCABULARY,
    Mixture,
    Recipe,
    row_length,
    shares,
)


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer of `VOCABULARY` entries fitted on the late mixture; it prepends `<|bos|>` by itself."""
    mixture = Mixture(recipe.seed)
    corpus = (mixture.draw(**LATE) for _ in range(TOKENIZER_DOCUMENTS))
    tokenizer = Tokenizer(models.BPE())
    # Digits first: numbers are then read and written digit by digit, which is what column addition needs.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


CHUNK = 50  # steps whose documents are generated together
CHECKPOINT = 300  # steps between checkpoints; a multiple of CHUNK, so that resuming needs no data state


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained model of about 1.5 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
        **MODEL,
    )
    return LlamaForCausalLM(config)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[torch.Tensor]:
    """Token ids `[rows, row length]` for step `start`, `start + 1`, ...; `start` opens a chunk."""
    for first in range(start, recipe.steps, CHUNK):
        # Every chunk has its own seed, so the data of a step does not depend on where a run was resumed.
        mixture = Mixture(recipe.seed * 1_000_003 + first // CHUNK + 1)
        for step in range(first, min(first + CHUNK, recipe.steps)):
            yield _batch(recipe, tokenizer, mixture, step)


def _batch(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, step: int) -> torch.Tensor:
    length = row_length(recipe, step)
    rows = [_row(recipe, tokenizer, mixture, step, length) for _ in range(recipe.batch_tokens // length)]
    return torch.tensor(rows)


def _row(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, step: int, length: int) -> list[int]:
    """Documents from a document start up to `length` tokens; the last one is cut.

    Rows open with a document because that is how the model is used: nothing comes before `<|bos|>`.
    """
    encode, ids = tokenizer.backend_tokenizer.encode, list[int]()
    while len(ids) < length:
        ids += encode(mixture.draw(**shares(recipe, step))).ids
    return ids[:length]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, a cosine planned for `plan` steps, and from `turn` on a cosine that ends at `steps`."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    share = _cosine(min(step, recipe.turn) / recipe.plan, 1.0, recipe.final_share)
    if step > recipe.turn:
        share = _cosine((step - recipe.turn) / (recipe.steps - recipe.turn), share, recipe.final_share)
    return recipe.learning_rate * warm * share


def _cosine(done: float, high: float, low: float) -> float:
    """From `high` at 0 to `low` at 1 along half a period."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * done))


def optimiser(recipe: Recipe, model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW; norms are not decayed."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats; `ids` is `[rows, length]`, activations are bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.float().reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, checkpoints: Path, resume: bool) -> LlamaForCausalLM:
    """The trained model; a usable intermediate model is kept in `checkpoints/latest`."""
    model = new_model(recipe.seed)
    model.train()
    opt = optimiser(recipe, model)
    start = _restore(checkpoints, model, opt) if resume else 0
    began, since = time.perf_counter(), start
    for step, ids in enumerate(batches(recipe, tokenizer, start), start):
        loss = _update(recipe, model, opt, ids, step)
        if step % 100 == 99:
            rate = (step + 1 - since) * recipe.batch_tokens / (time.perf_counter() - began)
            print(f"step {step + 1}/{recipe.steps}  loss {loss:.3f}  {rate:.0f} tok/s", flush=True)
            began, since = time.perf_counter(), step + 1
        if (step + 1) % CHECKPOINT == 0:
            _checkpoint(checkpoints, model, opt, tokenizer, step + 1)
    return model


def _update(recipe: Recipe, model: LlamaForCausalLM, opt: torch.optim.AdamW, ids: torch.Tensor, step: int) -> float:
    for group in opt.param_groups:
        group["lr"] = learning_rate(recipe, step)
    loss = loss_of(model, ids)
    opt.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    opt.step()
    return float(loss.detach())


def _checkpoint(
    folder: Path, model: LlamaForCausalLM, opt: torch.optim.AdamW, tokenizer: PreTrainedTokenizerFast, step: int
) -> None:
    """Model and tokenizer as usual, and the moments of AdamW as tensors named `index.name`."""
    latest = folder / "latest"
    model.save_pretrained(latest)
    tokenizer.save_pretrained(latest)
    moments = {f"{i}.{name}": value for i, state in opt.state_dict()["state"].items() for name, value in state.items()}
    save_file(moments, folder / "optimiser.safetensors")
    (folder / "progress.json").write_text(json.dumps({"step": step}) + "\n")


def _restore(folder: Path, model: LlamaForCausalLM, opt: torch.optim.AdamW) -> int:
    """Load the last checkpoint into `model` and `opt`; the number of steps it has made."""
    model.load_state_dict(LlamaForCausalLM.from_pretrained(folder / "latest").state_dict())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimiser.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return int(json.loads((folder / "progress.json").read_text())["step"])


def build(recipe: Recipe, output: Path, checkpoints: Path, resume: bool = False) -> None:
    """Tokenizer, training, export, measurement and model card, in this order."""
    tokenizer = train_tokenizer(recipe)
    checkpoints.mkdir(parents=True, exist_ok=True)
    model = train(recipe, tokenizer, checkpoints, resume)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # Imported late, so that a long training does not depend on what only its last minute needs.
    from latentbench_adapters.pocket.measure import measure
    from latentbench_adapters.pocket.recipe import write_card

    write_card(output, recipe, measure(output))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m latentbench_adapters.pocket.build", description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimiser updates (default %(default)s)")
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER, help="where the finished model goes")
    parser.add_argument("--checkpoints", type=Path, help="where the run can be resumed from (default: a temp folder)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Parse the command line and build."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    folder = arguments.checkpoints or Path(tempfile.gettempdir()) / "latentbench-pocket"
    build(dataclasses.replace(Recipe(), steps=arguments.steps), arguments.output, folder, arguments.resume)


if __name__ == "__main__":
    main()
