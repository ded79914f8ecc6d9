"""Models that keep other things than keys and values write what passes without a cache say, or are refused beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Layout, Scope
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from latentbench.interventions.writing_ways import check_trainable_rollouts, generate_way, rollout_way
from tests.support.hybrids import EQUAL, KEYS_AND_VALUES, LAYERS, OTHERS, QUICK, REFUSED, WIDTH, hybrid
from tests.support.writing import NEW, PROMPTS, WAYS, evaluated, greedy_ids

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = [*QUICK, "recurrent_gemma", *(pytest.param(name, marks=pytest.mark.slow) for name in (*OTHERS, "bart"))]


def vectors() -> SteeringVectors:
    generator = torch.Generator().manual_seed(1)
    return SteeringVectors({layer: torch.randn(WIDTH, generator=generator) for layer in (1, LAYERS - 1)})


def ended(ids: list[int], lm: LanguageModel) -> list[int]:
    """Greedy tokens up to the first end token, that one included."""
    end = lm.tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_those_without_a_cache(name: str) -> None:
    lm = hybrid(name)
    expected = [ended(greedy_ids(lm, prompt, NEW), lm) for prompt in PROMPTS]
    written = answers(lm, PROMPTS, Sampling(NEW), samples=2)
    assert [answer.ids for answer in written] == [ids for ids in expected for _ in range(2)]
    # lm-eval's texts are without the end token, and so is their length.
    lengths = [len(ids) - (ids[-1] == lm.tokenizer.eos_token_id) for ids in expected]
    assert [tokens for _, tokens, _ in evaluated(lm)] == lengths
    texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [text for text, *_ in evaluated(lm)] == texts


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scope", ["generated", "first", "all"])
def test_steered_answers_are_those_of_steered_passes_without_a_cache(name: str, scope: Scope) -> None:
    """Some of these models are not told again of the prompt's padding, from which a hook has to learn its place."""
    lm, steering = hybrid(name), VectorInjection(vectors(), 1.5, scope)
    expected = [ended(_steered_greedy(lm, steering, prompt), lm) for prompt in PROMPTS]
    layout = Layout()
    with steering.applied(lm, layout) as receipt:
        written = answers(lm, PROMPTS, Sampling(NEW), layout=layout)
    assert [answer.ids for answer in written] == expected
    assert expected != [ended(greedy_ids(lm, prompt, NEW), lm) for prompt in PROMPTS]
    assert receipt.steered


def _steered_greedy(lm: LanguageModel, steering: VectorInjection, prompt: str) -> list[int]:
    (ids,) = prompt_ids(lm, [prompt])
    start = len(ids)
    with steering.applied(lm, Layout(prompt_lengths=torch.tensor([start]))):
        for _ in range(NEW):
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids = [*ids, int(logits[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("name", QUICK)
def test_everywhere_a_hybrid_writes(name: str) -> None:
    lm = hybrid(name)
    for way in WAYS.values():
        assert way(lm) == way(lm)


@pytest.mark.parametrize("name", QUICK)
def test_samples_are_independent_and_come_again(name: str) -> None:
    lm = hybrid(name)

    def sampled(temperature: float) -> list[list[int]]:
        generator = torch.Generator().manual_seed(3)
        made = answers(lm, PROMPTS, Sampling(NEW, temperature), samples=4, generator=generator)
        return [answer.ids for answer in made]

    assert sampled(1.0) == sampled(1.0)
    assert len({tuple(ids) for ids in sampled(1.0)}) > 6
    assert sampled(1e-6) == [answer.ids for answer in answers(lm, PROMPTS, Sampling(NEW), samples=4)]


@pytest.mark.parametrize("name", KEYS_AND_VALUES)
def test_models_with_keys_and_values_keep_our_own_steps(name: str) -> None:
    assert rollout_way(hybrid(name)) == "cached"


@pytest.mark.parametrize("name", KEYS_AND_VALUES[:3])
def test_both_ways_sample_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as no row is dropped, after which fewer numbers are drawn."""
    lm = hybrid(name)
    lm.tokenizer.eos_token = lm.model.generation_config.eos_token_id = None

    def sampled() -> Any:
        return answers(lm, PROMPTS, Sampling(NEW, 1.0), samples=3, generator=torch.Generator().manual_seed(0))

    ours = sampled()
    monkeypatch.setattr("latentbench.interventions.rollouts.rollout_way", lambda lm: "padded")
    assert sampled() == ours
    monkeypatch.setattr("latentbench.interventions.rollouts.rollout_way", lambda lm: "equal lengths")
    assert [answer.ids for answer in sampled()] != [answer.ids for answer in ours]  # in other batches


@pytest.mark.parametrize("name", ["mamba", "llama"])
@pytest.mark.parametrize("stop", [(), ("w9",), ("w1 w2",)])
def test_answers_end_alike_in_all_ways(name: str, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = hybrid(name)
    expected = answers(lm, PROMPTS, Sampling(40, 0.0, stop))
    assert [ids for answer in expected for ids in answer.ids]
    for way in ("padded", "equal lengths"):
        monkeypatch.setattr("latentbench.interventions.rollouts.rollout_way", lambda lm, way=way: way)
        assert answers(lm, PROMPTS, Sampling(40, 0.0, stop)) == expected


def test_a_context_that_is_full_ends_answers_in_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = hybrid("gpt2")
    lm.tokenizer.eos_token = lm.model.generation_config.eos_token_id = None
    expected = answers(lm, PROMPTS, Sampling(1000))
    assert [len(answer.ids) for answer in expected] == [64 - len(ids) for ids in prompt_ids(lm, PROMPTS)]
    monkeypatch.setattr("latentbench.interventions.rollouts.rollout_way", lambda lm: "padded")
    assert answers(lm, PROMPTS, Sampling(1000)) == expected


@pytest.mark.parametrize("name", [*REFUSED])
@pytest.mark.parametrize("place", [place for place in WAYS if "likelihoods" not in place and place != "judge"])
def test_what_no_way_can_write_is_refused_before_anything_is_written(name: str, place: str) -> None:
    lm = hybrid(name)
    with pytest.raises(InvalidInput, match=r"cannot write: .*; take another model"):
        rollout_way(lm)
    with _nothing_run(lm), pytest.raises(InvalidInput, match=r"^\w+ForCausalLM cannot write: .*"):
        WAYS[place](lm)


@pytest.mark.parametrize("name", [*EQUAL])
def test_what_reads_padding_as_text_is_not_trained_by_its_own_answers(name: str) -> None:
    lm = hybrid(name)
    assert (rollout_way(lm), generate_way(lm)) == ("equal lengths", "equal lengths")
    with pytest.raises(InvalidInput, match="cannot be trained on its own answers"):
        check_trainable_rollouts(lm)
    check_trainable_rollouts(hybrid("mamba"))


def test_a_judge_that_cannot_write_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentbench_adapters.judges import transformers as judges

    lm = hybrid("rwkv")
    lm.tokenizer.chat_template = "{{ messages }}"
    model: Any = type("Model", (), {"id": "x", "load": lambda self, roots, device: lm})()
    with pytest.raises(NotAvailable, match="the judge 'x' cannot be asked: RwkvForCausalLM cannot write"):
        judges._loaded.__wrapped__(model, None)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_measuring_leaves_no_trace(name: str) -> None:
    """Neither in receipts of interventions that are on, nor in generators, nor in what is steered afterwards."""
    first, second = hybrid(name), hybrid(name)
    rollout_way(second)
    state = torch.random.get_rng_state()
    receipts = []
    for lm in (first, second):  # the first is measured while the vectors are on
        layout = Layout()
        with VectorInjection(vectors()).applied(lm, layout) as receipt:
            written = answers(lm, PROMPTS, Sampling(NEW), layout=layout)
        receipts.append((receipt, [answer.ids for answer in written]))
    assert receipts[0] == receipts[1]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba"])
def test_rounding_is_no_objection(name: str, dtype: torch.dtype) -> None:
    expected = "padded" if name == "mamba" else "cached"
    assert rollout_way(hybrid(name, dtype)) == expected


def test_weights_that_are_no_numbers_are_no_objection() -> None:
    lm = hybrid("llama")
    lm.model.get_output_embeddings().weight.fill_(float("nan"))
    assert rollout_way(lm) == "cached"


def test_memory_that_runs_out_is_no_objection_either() -> None:
    lm = hybrid("llama")

    def exhausted(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    lm.model.forward = exhausted
    with pytest.raises(torch.OutOfMemoryError):
        rollout_way(lm)


@contextmanager
def _nothing_run(lm: LanguageModel) -> Iterator[None]:
    """Fails where the model runs; what was found out about it is known by now."""
    passes: list[Any] = []
    handle = lm.model.register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        yield
    finally:
        handle.remove()
    assert not passes
