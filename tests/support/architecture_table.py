"""What works on which architecture, tried on tiny models: `python -m tests.support.architecture_table [--check]`.

Each cell is tried the way that a spec goes, and its result is compared with something computed in another way. It holds when
the two agree, is refused when one sentence says so (a LatentbenchError), and anything else is silent: a wrong number or a
traceback. The page is docs/architectures.md; `tests/numerics/test_architectures.py` compares it with what is tried.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.causality import check_causal
from latentbench.activations.residual import PARTS, hook_point
from latentbench.activations.resume import resumed_logits
from latentbench.core.errors import InvalidInput, LatentbenchError
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Point, Site
from latentbench.flow.interventions import editing
from latentbench.interventions.ablation import Ablation
from latentbench.interventions.changes import Use
from latentbench.interventions.conditions import DirectionCondition, Threshold
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Layout
from latentbench.interventions.lora import LoraAdapter, down_projections, installed_lora
from latentbench.interventions.vectors import SteeringVectors
from latentbench.steering.optimised import RlMethod
from tests.support.architectures import ARCHITECTURES, LAYERS, WIDTH, WORDS, model_of
from tests.support.labs import words_tokenizer
from tests.support.steering import WordProblems, lab
from tests.support.writing import NEW, PROMPTS, greedy_ids, rolled_out

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
IDS = torch.randint(3, WORDS - 1, (3, 9), generator=torch.Generator().manual_seed(1))
REAL = torch.arange(9) < torch.tensor([9, 6, 9])[:, None]
"""The second text is shorter and padded on the right."""
VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
SILENT = "SILENT"
Trial = Callable[[LanguageModel], str]


def capture(lm: LanguageModel) -> str:
    """The residual stream of every block is that of the model's own `output_hidden_states`, and blocks hand it on."""
    sites = [Site(index=index, point=point) for index in range(LAYERS) for point in ("resid_pre", "resid_post")]
    states = _every(lambda site: hidden_states(lm.model, [site], IDS)[site], sites)
    found = {site: state for site, state in states.items() if isinstance(state, Tensor)}
    if not found:
        return _which(states)
    own = lm.model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    expect(
        all(state.shape == (*IDS.shape, WIDTH) for state in found.values()), "another form than [texts, tokens, width]"
    )
    # Most architectures list what enters each block that runs, some what leaves it; the last one is normalised.
    lists = [[state for site, state in found.items() if site.point == point] for point in ("resid_pre", "resid_post")]
    expect(any(list(map(close, own, one)) == [True] * len(own[:-1]) for one in lists), "not transformers' own")
    for before, after in pairwise(sites[1:]):
        if before.point == "resid_post" and before in found and after in found:
            expect(close(found[before], found[after]), f"{before} is not {after}")
    return _which(states)


def inject(lm: LanguageModel) -> str:
    """A vector arrives at every real token of its block, and at none that is padding; so does every other change."""
    site, layer = Site(index=1), 1
    mask = REAL.long()
    plain = hidden_states(lm.model, [site], IDS, mask)[site]
    vectors, direction = SteeringVectors({layer: VECTOR}), VECTOR / VECTOR.norm()
    added, value = plain + VECTOR, plain @ direction
    middle = float(value[REAL].sort().values[int(REAL.sum()) // 2 - 1 :][:2].mean())
    condition = DirectionCondition(site, direction, Threshold(middle))
    changes: list[tuple[str, Intervention, Tensor, Tensor]] = [
        ("the vector", VectorInjection(vectors), added, REAL),
        ("a projection", Ablation({layer: direction[None]}), plain - value[..., None] * direction, REAL),
        (
            "a rotation",
            VectorInjection(vectors, use=Use(keeps_length=True)),
            added * plain.norm(dim=-1, keepdim=True) / added.norm(dim=-1, keepdim=True),
            REAL,
        ),
        ("the vector on a condition", VectorInjection(vectors).where(condition), added, REAL & (value > middle)),
    ]
    for name, intervention, expected, where in changes:
        with intervention.applied(lm, Layout()) as receipt:
            moved = hidden_states(lm.model, [site], IDS, mask)[site]
        expect(close(moved, torch.where(where[..., None], expected, plain)), f"another change than {name}")
        expect(receipt.steered == int(where.sum()), f"{receipt.steered} tokens")
    return ""


def resume(lm: LanguageModel) -> str:
    """A pass that starts at a block gives the logits of the whole one, and with another hidden state other ones."""
    for site in (Site(index=2, point="resid_pre"), Site(index=1)):
        states, logits = hidden_states_and_logits(lm.model, [site], IDS)
        expect(close(resumed_logits(lm.model, site, states[site], IDS), logits), f"other logits from {site}")
        moved = resumed_logits(lm.model, site, states[site] + VECTOR, IDS)
        with editing(lm.model, {site: lambda hidden, real: VECTOR.expand_as(hidden)}):
            expected = lm.model(input_ids=IDS, use_cache=False).logits
        expect(close(moved, expected) and not close(moved, logits), f"other logits from a changed {site}")
    return ""


def train(lm: LanguageModel) -> str:
    """Three steps of reinforcement learning move the vector of every block, and leave the model as it was."""
    options = {"steps": 3, "prompts": 2, "samples": 4, "max_new_tokens": 4, "reward": "random", "selection": 0}
    named = RlMethod.model_validate_json(json.dumps({"problems": {"adapter": "pocket"}, **options}))
    before = lm.model(input_ids=IDS, use_cache=False).logits
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        made = named.model_copy(update={"problems": WordProblems()}).make(lab(lm, Path(folder)))
    sizes = {name: float(vector.norm()) for name, vector in made.tensors.items()}
    still = [name for name, size in sizes.items() if not 0 < size < float("inf")]
    expect(not still and len(sizes) == LAYERS, f"{', '.join(still)} of {len(sizes)} vectors did not move")
    expect(torch.equal(lm.model(input_ids=IDS, use_cache=False).logits, before), "the model is another one afterwards")
    return ""


def generate(lm: LanguageModel) -> str:
    """Greedy rollouts of padded prompts, two samples each, are what decoding without a cache or padding writes."""
    written = [ids for _, ids, _ in rolled_out(lm)]
    for number, prompt in enumerate(PROMPTS):
        wanted = greedy_ids(lm, prompt, NEW)
        for ids in written[2 * number : 2 * number + 2]:
            expect(bool(ids) and ids == wanted[: len(ids)], f"{ids} instead of {wanted}")
    return ""


def attention(lm: LanguageModel) -> str:
    """What is read at `attn_out` is what attention adds."""
    return _part(lm, "attn_out")


def mlp(lm: LanguageModel) -> str:
    """What is read at `mlp_out` is what the MLP adds."""
    return _part(lm, "mlp_out")


def lora(lm: LanguageModel) -> str:
    """A LoRA adapter on a block's down-projection is the model with B A added to that matrix."""
    return _which(_every(lambda site: _adapted(lm, site.index), [Site(index=index) for index in range(LAYERS)]))


TRIALS: Mapping[str, Trial] = {
    "capture": capture,
    "inject": inject,
    "resume": resume,
    "train": train,
    "generate": generate,
    "attn_out": attention,
    "mlp_out": mlp,
    "LoRA": lora,
}


def tried(name: str) -> dict[str, str]:
    """Heading to "yes", "blocks 1, 3: sentence", or a sentence, for one architecture."""
    lm = LanguageModel(model_of(name).requires_grad_(False), words_tokenizer(), torch.device("cpu"))
    if refusal := _tried(lambda lm: check_causal(lm.model) or "", lm):
        return dict.fromkeys(TRIALS, refusal)
    return {heading: _tried(trial, lm) or "yes" for heading, trial in TRIALS.items()}


@torch.no_grad()
def _tried(trial: Trial, lm: LanguageModel) -> str:
    try:
        return trial(lm)
    except LatentbenchError as error:
        return _general(str(error))
    except Exception as error:  # what must not be: it is what the test fails on
        return f"{SILENT}: {type(error).__name__}: {str(error)[:200]}"


def expect(holds: bool, otherwise: str) -> None:
    """Raises AssertionError, which no cell may end in."""
    if not holds:
        raise AssertionError(otherwise)


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    )


def _every(look: Callable[[Site], Any], sites: list[Site]) -> dict[Site, Any]:
    """What is found at each site; a text where it is refused: why."""
    found: dict[Site, Any] = {}
    for site in sites:
        try:
            found[site] = look(site)
        except InvalidInput as error:
            found[site] = _general(str(error))
    return found


def _which(found: Mapping[Site, Any]) -> str:
    """Empty where all works, a sentence where nothing does, and otherwise which blocks work and why the others do not."""
    why = {site.index: one for site, one in found.items() if isinstance(one, str)}
    works = sorted({site.index for site in found} - why.keys())
    sentences = " / ".join(dict.fromkeys(why.values()))
    if not works or not why:
        return sentences
    return f"block{'s' * (len(works) > 1)} {', '.join(map(str, works))}: {sentences}"


def _part(lm: LanguageModel, point: Point) -> str:
    return _which(_every(lambda site: _added(lm, site), [Site(index=index, point=point) for index in range(LAYERS)]))


def _added(lm: LanguageModel, site: Site) -> Tensor:
    """The hidden state of a part. Put back it changes nothing, and with the other part it is all that the block adds."""
    hook_point(lm.model, site)
    pre, post = (Site(index=site.index, point=point) for point in ("resid_pre", "resid_post"))
    parts = [Site(index=site.index, point=point) for point in PARTS]
    both = not any(isinstance(found, str) for found in _every(lambda one: hook_point(lm.model, one), parts).values())
    wanted = [pre, *(parts if both else [site]), post]
    states, logits = hidden_states_and_logits(lm.model, wanted, IDS)
    with editing(lm.model, {site: lambda hidden, real: VECTOR.expand_as(hidden)}):
        moved = hidden_states(lm.model, wanted, IDS)
    with VectorInjection(SteeringVectors({site.index: VECTOR}, place=site.point)).applied(lm, Layout()):
        steered = hidden_states(lm.model, wanted, IDS)
    expect(all(close(steered[one], moved[one]) for one in wanted), f"a vector added at {site} is another change")
    again = resumed_logits(lm.model, site, states[site], IDS, None, states[pre])
    expect(close(again, logits), f"other logits from {site}")
    expect(close(moved[site], states[site] + VECTOR), f"another change at {site}")
    for found in (states, moved) if both else ():
        expect(close(sum((found[part] for part in parts), found[pre]), found[post]), f"{site} is not what is added")
    if site.point == "mlp_out":  # behind attention, the MLP may answer
        expect(close(moved[post], states[post] + VECTOR), f"a change at {site} does not arrive as it is")
    return states[site]


def _adapted(lm: LanguageModel, layer: int) -> Tensor:
    name = down_projections(lm.model, (layer,))[layer]
    matrix: Any = lm.model.get_submodule(name)
    with installed_lora(lm, (layer,), 1) as adapters:
        shapes = {kind: getattr(adapters[layer], f"lora_{kind}")["default"].weight.shape for kind in "AB"}
    drawn = torch.Generator().manual_seed(3)
    weights = {f"{kind}.{layer}": torch.randn(shape, generator=drawn) for kind, shape in shapes.items()}
    with LoraAdapter(weights, (layer,), 1, scale=0.5).applied(lm, Layout()) as receipt:
        adapted: Tensor = lm.model(input_ids=IDS, use_cache=False).logits
    before = matrix.weight.clone()
    change = 0.5 * weights[f"B.{layer}"] @ weights[f"A.{layer}"]
    try:
        matrix.weight += change if isinstance(matrix, nn.Linear) else change.T
        merged = lm.model(input_ids=IDS, use_cache=False).logits
    finally:
        matrix.weight.copy_(before)
    plain = lm.model(input_ids=IDS, use_cache=False).logits
    expect(close(adapted, merged) and not close(adapted, plain), "another model than with the matrix changed")
    expect(receipt.steered == IDS.numel(), f"{receipt.steered} tokens")
    return adapted


def _general(sentence: str) -> str:
    """A refusal without what differs from block to block, model to model and machine to machine."""
    sentence = re.sub(r"^\w+( \(layer \d+\))?: ", "", " ".join(sentence.split()))
    sentence = re.sub(r"^\w+ \(layer \d+\) ", "the block ", sentence)
    for pattern, instead in (
        (r"looked for a child named .*? found [\w, ]+", "looked for by name and class"),
        (r"\b\w+(?:\.\w+)*\.\d+\.(?:\w+\.)*(\w+)", r"\1"),
        (r"\b[A-Z]\w*(?:ForCausalLM|ForConditionalGeneration|LMHeadModel|Attention|MLP|Model)\b", "it"),
        (r"(?<![\w.])-?\d+(\.\d+)?(e[-+]\d+)?%?", "…"),
    ):
        sentence = re.sub(pattern, instead, sentence)
    return sentence


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The page for what was tried, by architecture."""
    notes: list[str] = []

    def cell(found: str) -> str:
        works, _, why = found.partition(": ") if re.match(r"blocks? \d", found) else ("", "", found)
        if why == "yes":
            return "yes"
        marks = [notes.index(one) + 1 for one in why.split(" / ") if one in notes or notes.append(one) is None]
        return f"{works or ('fails' if why.startswith(SILENT) else 'no')} {''.join(f'[{mark}]' for mark in marks)}"

    lines = [f"| {name} | {_class(name)} | {' | '.join(map(cell, row.values()))} |" for name, row in rows.items()]
    head = f"| `model_type` | blocks | {' | '.join(TRIALS)} |\n|{'---|' * (len(TRIALS) + 2)}"
    whole = sum(set(row.values()) == {"yes"} for row in rows.values())
    silent = sum(SILENT in cell for row in rows.values() for cell in row.values())
    said = f"{silent} cells fail without saying why, which must not be." if silent else "Nothing is silent."
    return "\n".join(
        [_INTRODUCTION.format(count=len(rows), whole=whole, said=said), head, *lines, "", *_numbered(notes), ""]
    )


def _numbered(notes: list[str]) -> list[str]:
    return ["Refusals (`…` stands for numbers):", "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]


def _class(name: str) -> str:
    return f"`{'`, `'.join(dict.fromkeys(type(block).__name__ for block in decoder_blocks(model_of(name))))}`"


_INTRODUCTION = """# Architectures

What works on {count} architectures of transformers, {whole} of them without a restriction. This page is made by
`python -m tests.support.architecture_table`, which tries each cell on a model of four tiny blocks with random weights and
compares it with the same thing computed in another way; a test compares the page with what it finds. A cell says "yes", which
blocks work, or "no", and then a number that leads to the sentence with which the rest is refused. {said}

* **capture**: the residual stream of every block is that of transformers' `output_hidden_states`.
* **inject**: a vector added to a block's output arrives at every token and at no padding.
* **resume**: a forward pass that starts in the middle gives the logits of the whole one (cross-entropy with reconstructions).
* **train**: steps of reinforcement learning move the vectors of all blocks.
* **generate**: many rollouts at a time are those of decoding without a cache.
* **attn_out**, **mlp_out**: what is read there is what attention and MLP add to the residual stream, and a
  vector added there is added to that.
* **LoRA**: the adapter baseline is the model with B A added to the matrix that ends its MLP, all of the MLP.

An architecture that is not listed is treated the same way: found by structure, measured on loading, or refused. A model that
also sees or hears is given text alone; where transformers has its text decoder as a model of its own (Llama 4, Qwen3.5,
Mllama), only that is loaded.
"""


def main() -> int:
    """`python -m tests.support.architecture_table [--check]`: writes the page, or says where it differs from what is found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    rows = {name: tried(name) for name in ARCHITECTURES}
    silent = [
        f"{name}, {heading}: {cell}" for name, row in rows.items() for heading, cell in row.items() if SILENT in cell
    ]
    print("\n".join(silent), file=sys.stderr)
    made = page(rows)
    if not check:
        PAGE.write_text(made, "utf-8")
    return int(bool(silent) or PAGE.read_text("utf-8") != made)


if __name__ == "__main__":
    sys.exit(main())
