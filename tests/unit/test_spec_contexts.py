"""Texts that are longer than the model's positions are refused where they stand, before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbench.activations.model_config import facts_of
from latentbench.core.errors import InvalidInput
from latentbench.execute.job_inputs import ModelCache
from latentbench.spec.checks import check
from latentbench.spec.project import load_specs
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.project import Workbench

ROOM = 64  # of the tiny model
PROBLEMS = {"adapter": "pocket", "split": "train"}
RL = {"method": "rl", "problems": PROBLEMS}
STUDY = {"problems_from": PROBLEMS, "prompts": 2}


def said(bench: Workbench, **changes: Any) -> list[str]:
    bench.spec(**changes)
    (spec,) = load_specs(bench.project, ["mine"])
    return [str(problem) for problem in check(spec, bench.project.roots)]


@pytest.mark.parametrize("place", ["dataset.eval.lab", "dataset.train", "dataset.base", "dataset.domains.law"])
def test_a_context_beyond_the_models_positions_is_refused_where_it_stands(bench: Workbench, place: str) -> None:
    texts = {"adapter": "files", "path": "data/train.jsonl", "tokens": 1024, "documents": 6}
    over, full = ({place.replace(".", "__"): {**texts, "context": context}} for context in (ROOM + 1, ROOM))
    (problem,) = [line for line in said(bench, **over) if "positions" in line]
    line = next(
        n for n, text in enumerate((bench.root / "specs/mine.yaml").read_text().splitlines(), 1) if "65" in text
    )
    assert problem.startswith(f"specs/mine.yaml:{line}:")
    assert problem.endswith(
        f": {place}.context: texts of 65 tokens are longer than the model's 64 positions; set `context: 64` or less"
    )
    assert not [line for line in said(bench, **full) if "positions" in line]


def test_a_context_that_is_not_written_is_refused_at_its_texts(bench: Workbench) -> None:
    (problem,) = said(bench, dataset__eval__lab={"adapter": "files", "path": "data/eval.jsonl", "documents": 6})
    assert "dataset.eval.lab: texts of 128 tokens are longer" in problem


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("steering.max_new_tokens", {"steering": {**RL, "max_new_tokens": 0}, "metrics": ["capability_cost"]}),
        (
            "steering",
            {"steering": {"method": "stack", "parts": [{**RL, "max_new_tokens": 0}]}, "metrics": ["capability_cost"]},
        ),
        (
            "metrics[0].logit_attribution.new_tokens",
            {
                "steering": {"method": "random", "norm": 1.0},
                "metrics": [{"logit_attribution": {**STUDY, "new_tokens": 0}}],
            },
        ),
        (
            "metrics[0].reasoning_accuracy.max_new_tokens",
            {
                "steering": {"method": "none"},
                "metrics": [{"reasoning_accuracy": {"task": "pocket_problems", "max_new_tokens": 0}}],
            },
        ),
    ],
    ids=["trained", "stack", "mechanism", "task"],
)
def test_answers_that_leave_no_room_are_refused_where_they_stand(
    bench: Workbench, place: str, changes: dict[str, Any]
) -> None:
    def asked(tokens: int) -> list[str]:
        text = json.dumps({"sae": None, "layer": None, **changes})
        filled = json.loads(text.replace('tokens": 0', f'tokens": {tokens}'))
        return [line for line in said(bench, **filled) if "room" in line]

    (problem,) = asked(ROOM)
    assert f" {place}: answers of 64 tokens leave no room for a question in the model's context of 64" in problem
    assert not asked(ROOM - 1)


def test_prompts_and_texts_of_a_flow_must_fit_together(bench: Workbench) -> None:
    def asked(tokens: int) -> list[str]:
        flow = {"flow_steering": {"target": "lab", "prompt_tokens": 8, "tokens": tokens}}
        second = {"adapter": "files", "path": "data/train.jsonl", "documents": 6, "context": 16}
        shape: dict[str, Any] = {"layer": None, "layers": [0, 1], "flow": {}, "dataset__eval__other": second}
        return [line for line in said(bench, **shape, metrics=[flow]) if "room" in line]

    assert len(asked(ROOM - 7)) == 1
    assert not asked(ROOM - 8)


@pytest.mark.parametrize(
    ("stated", "room"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64, "n_ctx": 32}, 64),
        ({"n_ctx": 32}, 32),
        ({"max_position_embeddings": None, "n_positions": 16}, 16),
        ({}, None),
        *(({"max_position_embeddings": odd}, None) for odd in (-1, 0, "64", 64.0, True, [64], None)),
    ],
    ids=str,
)
def test_the_models_positions_are_those_that_its_configuration_states(stated: dict[str, Any], room: int | None) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 30}
    assert facts_of({**shape, **stated}, "x").context == room
    assert facts_of({"text_config": {**shape, **stated}}, "x").context == room


def test_positions_that_only_the_loaded_model_tells_are_refused_in_one_sentence(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.support.tokenizers import bpe, fast

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=300)).save_pretrained(tmp_path)
    fast(bpe()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("n_positions"), config.pop("n_ctx", None)) == (1024, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    adapter = TransformersModel(id=str(tmp_path))
    models = ModelCache(roots := Workbench(tmp_path).project.roots, "cpu")
    facts = adapter.facts(roots)
    assert facts is not None
    assert facts.context is None
    loaded = models.model(adapter, 1024)
    loaded.model(torch.zeros(1, 1024, dtype=torch.long))
    with pytest.raises(InvalidInput, match="texts of 1025 tokens are longer than the model's 1024 positions"):
        models.model(adapter, 1025)
