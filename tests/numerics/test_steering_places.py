"""Vectors and ablations at other places than the outputs of blocks, against plain hooks on modules named by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconConfig, Gemma2Config, GraniteConfig

from latentbench.activations.blocks import decoder_blocks
from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Point
from latentbench.interventions.ablation import Ablation, orthonormal
from latentbench.interventions.generation import left_padded
from latentbench.interventions.injection import VectorInjection, injecting
from latentbench.interventions.vectors import SteeringVectors, write_vectors
from latentbench.mechanism.metrics.study import vector_problems
from latentbench.steering.ablation import AblateMethod
from latentbench.steering.baselines import LoadMethod, NoSteering, RandomMethod
from latentbench.steering.build import place_of, residual_norms
from latentbench.steering.contrastive import ContrastiveMethod
from latentbench.steering.optimised import LoraMethod, RlMethod
from latentbench_adapters.pocket.adapter import PocketProblems
from tests.numerics.test_steering_training import rolled, section
from tests.support.steering import ENDS, LAYERS, SHAPE, WIDTH, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["rolled"]  # a fixture

PLACES: tuple[Point, ...] = ("resid_pre", "attn_out", "mlp_out")
NEW = 4
EXACT = 1e-6
"""How far logits may be off: the models compute in float64, but their RMS norms and angles in float32."""
PROMPTS = [[0, 5, 9, 30, 7], [0, 8], [0, 50, 51]]
OTHERS: dict[str, Any] = {
    "granite": GraniteConfig(**SHAPE, **ENDS, intermediate_size=24, num_key_value_heads=1, residual_multiplier=0.25),
    "gemma2": Gemma2Config(**SHAPE, **ENDS, intermediate_size=24, num_key_value_heads=1, head_dim=8),
    "falcon": FalconConfig(**SHAPE, **ENDS, new_decoder_architecture=True, num_kv_heads=1),
}
ADDED_BY: dict[str, tuple[str, str, float]] = {
    "llama": ("self_attn", "mlp", 1.0),
    "gpt2": ("attn", "mlp", 1.0),
    "gpt_neox": ("attention", "mlp", 1.0),
    "granite": ("self_attn", "mlp", 0.25),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", 1.0),
    "falcon": ("self_attention", "mlp", 1.0),
}
"""By architecture the modules whose outputs are what attention and MLP add, and what the block multiplies them by."""


def made_of(name: str) -> LanguageModel:
    """A tiny model in float64."""
    if name not in OTHERS:
        return language_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(OTHERS[name])
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return replace(language_model("llama"), model=model.double().eval().requires_grad_(False))


def vectors(seed: int = 1) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(WIDTH, generator=generator) for layer in range(LAYERS)}


Change = Callable[[int, Tensor], Tensor]


@contextmanager
def by_hand(lm: LanguageModel, name: str, place: Point, change: Change) -> Any:
    """Plain hooks: `change` is done to what enters a block, or to what its attention or MLP adds."""
    attention, mlp, multiplier = ADDED_BY[name]

    def entering(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(layer, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(layer, kwargs["hidden_states"])}

        return hook

    def leaving(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            left = change(layer, first * multiplier) / multiplier
            return (left, *output[1:]) if isinstance(output, tuple) else left

        return hook

    with ExitStack() as stack:
        for layer, block in enumerate(decoder_blocks(lm.model)):
            part = block.get_submodule(attention if place == "attn_out" else mlp)
            hooked = (
                block.register_forward_pre_hook(entering(layer), with_kwargs=True)
                if place == "resid_pre"
                else part.register_forward_hook(leaving(layer))
            )
            stack.callback(hooked.remove)
        yield


def written(lm: LanguageModel, prompts: list[list[int]], intervention: Any, cached: bool) -> list[tuple[Any, ...]]:
    """By left-padded prompt: itself, a greedy text behind it, and the logits [NEW, vocabulary] that it was drawn from."""
    ids, mask = left_padded(prompts, 1, torch.device("cpu"))
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "use_cache": cached}
    with intervention.applied(lm) as receipt:
        made = lm.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    assert receipt.steered > 0
    assert receipt.calls == receipt.passes * LAYERS
    texts = [prompt + row[ids.shape[1] :].tolist() for prompt, row in zip(prompts, made.sequences, strict=True)]
    return list(zip(prompts, texts, torch.stack(made.logits, 1), strict=True))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ADDED_BY)
def test_a_vector_is_added_where_a_plain_hook_adds_it_cached_or_not(name: str, place: Point) -> None:
    lm, own = made_of(name), vectors()
    injection = VectorInjection(SteeringVectors(own, place=place))
    # Gemma-2's eager attention gives NaN in float64 at texts that are padded, steered or not.
    batches = [[prompt] for prompt in PROMPTS] if name == "gemma2" else [PROMPTS]
    for cached in (True, False):
        for prompt, text, logits in (row for batch in batches for row in written(lm, batch, injection, cached)):
            ids = torch.tensor([text[:-1]])
            with by_hand(lm, name, place, lambda layer, hidden: hidden + own[layer].double()):
                expected = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
            assert (logits - expected).abs().max() < EXACT
            plain = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
            assert (plain - expected).abs().max() > 1e-3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["llama", "granite", "falcon"])
def test_gradients_are_those_of_plain_hooks(name: str, place: Point) -> None:
    lm, ids = made_of(name), torch.tensor([[0, 5, 9, 30, 7]])
    found = {layer: v.double().requires_grad_(True) for layer, v in vectors().items()}
    wanted = {layer: v.double().requires_grad_(True) for layer, v in vectors().items()}
    with injecting(lm.model, found, place=place):
        lm.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, :, 3].sum().backward()
    with by_hand(lm, name, place, lambda layer, hidden: hidden + wanted[layer]):
        lm.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0, :, 3].sum().backward()
    for layer, vector in found.items():
        assert vector.grad is not None
        assert vector.grad.any()
        torch.testing.assert_close(vector.grad, wanted[layer].grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("place", PLACES)
def test_a_direction_is_projected_out_there_alone(place: Point) -> None:
    lm, ids = made_of("granite"), torch.tensor([[0, 5, 9, 30, 7]])
    bases = {layer: orthonormal(vector[None]) for layer, vector in vectors().items()}

    def without(layer: int, hidden: Tensor) -> Tensor:
        return hidden - (hidden @ bases[layer].double().T) @ bases[layer].double()

    with Ablation(bases, place=place).applied(lm) as receipt:
        found = lm.model(input_ids=ids, use_cache=False).logits
    with by_hand(lm, "granite", place, without):
        expected = lm.model(input_ids=ids, use_cache=False).logits
    assert (found - expected).abs().max() < EXACT
    assert receipt.steered == LAYERS * ids.shape[1]


def around(lm: LanguageModel, folder: Path, texts: list[str]) -> Any:
    model = SimpleNamespace(identity=lambda roots: {"hub": "a/b", "dtype": "float64"})
    eval_texts = SimpleNamespace(documents=len(texts), read=lambda roots: iter(texts))
    experiment: Any = SimpleNamespace(model=model, dataset=SimpleNamespace(eval={"lab": eval_texts}))
    return replace(lab(lm, folder), experiment=experiment)


TEXTS = ["w3 w4 w5 w6", "w9 w8", "w7 w50 w51 w52"]


def states(lm: LanguageModel, name: str, place: Point, text: str) -> dict[int, Tensor]:
    """Hidden states [T, d] of one text by layer, read by plain hooks."""
    found: dict[int, Tensor] = {}

    def read(layer: int, hidden: Tensor) -> Tensor:
        found[layer] = hidden.reshape(-1, WIDTH).clone()
        return hidden

    with by_hand(lm, name, place, read):
        lm.model(input_ids=torch.tensor([[int(word[1:]) for word in text.split()]]), use_cache=False)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_vectors_and_norms_are_those_of_the_hidden_state_there(place: Point, tmp_path: Path) -> None:
    lm = made_of("granite")
    lab_of = around(lm, tmp_path, TEXTS)
    read = [states(lm, "granite", place, text) for text in TEXTS]
    method = ContrastiveMethod(positive=TEXTS[:1], negative=TEXTS[1:2], place=place, layers=(0, 2), relative=True)
    made = method.make(lab_of)
    norms = residual_norms(lm, (0, 1, 2), TEXTS, place)
    injection = method.read(made, lab_of)
    assert isinstance(injection, VectorInjection)
    assert place_of(made) == injection.vectors.place == place
    assert [str(site) for site in injection.sites] == [f"0.{place}", f"2.{place}"]
    for layer in (0, 2):
        expected = read[0][layer][-1] - read[1][layer][-1]
        torch.testing.assert_close(made.tensors[f"layer.{layer}"], expected.float(), rtol=1e-5, atol=1e-6)
        lengths = torch.cat([text[layer][1:] for text in read]).norm(dim=1)
        assert norms[layer] == pytest.approx(float(lengths.mean()), rel=1e-6)
        negative = float(read[1][layer][1:].norm(dim=1).mean())
        assert float(injection.deltas[layer].norm()) == pytest.approx(negative, rel=1e-5)


def test_the_first_steps_of_training_are_those_of_a_plain_hook(tmp_path: Path, rolled: Any) -> None:
    lm = language_model("llama", torch.float32)
    method = section(place="mlp_out", micro_batch=4, optimizer={"learning_rate": 0.05})
    made = method.make(lab(lm, tmp_path))
    found = {layer: torch.zeros(WIDTH, requires_grad=True) for layer in range(LAYERS)}
    optimizer = torch.optim.AdamW(list(found.values()), lr=0.05, weight_decay=0.0)
    for prompts, completions, rewards in rolled:
        total = torch.zeros((), dtype=torch.float64)
        optimizer.zero_grad()
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            group = rewards[row // 3 * 3 : row // 3 * 3 + 3]
            advantage = rewards[row] - (sum(group) - rewards[row]) / 2
            with by_hand(lm, "llama", "mlp_out", lambda layer, hidden: hidden + found[layer]):
                logits = lm.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            chosen = torch.log_softmax(logits.double(), -1)[range(len(completion)), completion]
            total = total - advantage * chosen.sum()
        (total / sum(map(len, completions))).backward()
        optimizer.step()
    assert place_of(made) == "mlp_out"
    for layer, vector in found.items():
        torch.testing.assert_close(made.tensors[f"layer.{layer}"], vector.detach(), rtol=5e-3, atol=5e-5)


def test_a_place_is_part_of_files_and_of_what_tells_vectors_apart(tmp_path: Path) -> None:
    at_output, at_mlp = SteeringVectors(vectors()), SteeringVectors(vectors(), place="mlp_out")
    assert at_output.digest != at_mlp.digest
    at_mlp.save(tmp_path / "made.safetensors")
    assert SteeringVectors.load(tmp_path / "made.safetensors").place == "mlp_out"
    for ending in ("gguf", "pt"):
        with pytest.raises(InvalidInput, match="knows outputs of blocks only"):
            write_vectors(at_mlp, tmp_path / f"made.{ending}")
    lab_of = around(made_of("llama"), tmp_path, TEXTS)
    load = LoadMethod(path="made.safetensors", place="mlp_out")
    made = load.read(load.make(lab_of), lab_of)
    assert isinstance(made, VectorInjection)
    assert made.vectors.digest == at_mlp.digest
    with pytest.raises(InvalidInput, match="say `place: mlp_out`"):
        LoadMethod(path="made.safetensors").make(lab_of)


def test_a_file_with_a_place_that_there_is_not_is_refused(tmp_path: Path) -> None:
    SteeringVectors(vectors(), place="mlp_out").save(tmp_path / "made.safetensors")
    raw = (tmp_path / "made.safetensors").read_bytes()
    (tmp_path / "made.safetensors").write_bytes(raw.replace(b'"mlp_out"', b'"mlp_in!"'))
    with pytest.raises(RefusedFile, match="there is no place"):
        SteeringVectors.load(tmp_path / "made.safetensors")


def test_a_place_is_written_only_where_it_is_said_and_refused_where_it_means_nothing() -> None:
    plain, placed = RandomMethod(norm=1.0), RandomMethod(norm=1.0, place="attn_out")
    assert "place" not in plain.plain()
    assert placed.plain() == {**plain.plain(), "place": "attn_out"}
    assert AblateMethod(directions=(plain,), place="mlp_out").place == "mlp_out"
    for kind, more in ((NoSteering, {}), (LoraMethod, {"problems": PocketProblems()})):
        with pytest.raises(ValidationError, match="`place` is not for the method"):
            kind(place="attn_out", **more)
    experiment: Any = SimpleNamespace(steering=RlMethod(problems=PocketProblems(), place="resid_pre"))
    (problem,) = vector_problems("logit_lens", experiment)
    assert "added to outputs of blocks" in problem


def test_a_place_that_the_architecture_has_not_is_refused_by_name() -> None:
    from transformers import BloomConfig

    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(
            BloomConfig(hidden_size=WIDTH, n_layer=LAYERS, n_head=2, vocab_size=120)
        )
    lm = replace(language_model("llama"), model=model.eval())
    injection = VectorInjection(SteeringVectors(vectors(), place="attn_out"))
    with pytest.raises(InvalidInput, match="adds the residual stream itself"), injection.applied(lm):
        pass
