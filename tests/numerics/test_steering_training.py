"""Training by reinforcement: TRL's step is RLOO's, a killed training goes on bit for bit, the model stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.generation import left_padded, prompt_ids
from latentbench.interventions.injection import VectorInjection, injecting
from latentbench.interventions.intervention import Layout, Scope
from latentbench.steering import rl_steps
from latentbench.steering.grading import read_problems
from latentbench.steering.optimised import LoraMethod, ReinforcedMethod, RlMethod
from latentbench.steering.rl_training import CHECKPOINT_FILE, RlCheckpoint
from latentbench.study.context import Content
from latentbench_adapters.pocket.adapter import PocketModel, PocketProblems
from tests.support.hybrids import PADDED, hybrid
from tests.support.steering import CONFIGS, Killed, WordProblems, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")


def section(kind: type[ReinforcedMethod] = RlMethod, **changes: Any) -> Any:
    plain = {"steps": 3, "prompts": 4, "samples": 3, "max_new_tokens": 6, "reward": "random", "selection": 0, **changes}
    made = kind.model_validate_json(json.dumps({"problems": {"adapter": "pocket"}, **plain}))
    return made.model_copy(update={"problems": WordProblems()})


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[int]], list[list[int]], list[float]]]:
    """Every step's prompts, completions and ±1 rewards, as TRL got them."""
    seen: list[Any] = []
    rollouts, rewards = rl_steps._Recorder.rollouts, rl_steps._Recorder.rewards

    def watched_rollouts(self: Any, prompts: list[str], trainer: Any) -> dict[str, Any]:
        given = rollouts(self, prompts, trainer)
        seen.append([given["prompt_ids"], given["completion_ids"]])
        return given

    def watched_rewards(self: Any, answer: list[str], **more: Any) -> list[float]:
        given = rewards(self, answer, **more)
        seen[-1].append(list(self.statistics.rewards))
        return given

    monkeypatch.setattr(rl_steps._Recorder, "rollouts", watched_rollouts)
    monkeypatch.setattr(rl_steps._Recorder, "rewards", watched_rewards)
    return seen


def rloo_loss(
    lm: LanguageModel, step: Any, vectors: dict[int, Tensor], samples: int, temperature: float, scope: Scope = "all"
) -> Tensor:
    """The definition, row by row and without padding."""
    prompts, completions, rewards = step
    total = torch.zeros((), dtype=torch.float64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        group = rewards[row // samples * samples : (row // samples + 1) * samples]
        advantage = rewards[row] - (sum(group) - rewards[row]) / (samples - 1)
        with injecting(lm.model, vectors, scope, Layout(prompt_lengths=torch.tensor([len(prompt)]))):
            logits = lm.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits.double() / temperature, -1)[range(len(completion)), completion]
        total = total - advantage * chosen.sum()
    return total / sum(map(len, completions))


@pytest.mark.parametrize(
    ("name", "micro_batch", "scope"),
    [
        *(("llama", None, "all"), ("gpt2", 4, "all"), ("llama", 4, "generated")),
        *(("mamba", 4, "generated"), ("jamba", 4, "all"), ("mixtral", 4, "all")),
        *(pytest.param(name, 4, "generated", marks=pytest.mark.slow) for name in PADDED),
    ],
)
def test_every_step_is_adam_on_the_rloo_loss(
    tmp_path: Path, name: str, micro_batch: int | None, scope: Scope, rolled: Any
) -> None:
    """Three steps replayed from their rollouts by a bare loop over the definition."""
    lm = language_model(name, torch.float32) if name in CONFIGS else hybrid(name)
    check_steps(lm, tmp_path, rolled, {"micro_batch": micro_batch, "scope": scope})


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_so_is_every_step_on_rollouts_that_come_and_go(tmp_path: Path, scope: Scope, rolled: Any) -> None:
    lm = language_model("llama", torch.float32)
    check_steps(lm, tmp_path, rolled, {"rollouts": "continuous", "scope": scope, "max_new_tokens": 9})
    assert len({len(row) for _, rows, _ in rolled for row in rows}) > 1


def check_steps(lm: LanguageModel, folder: Path, rolled: Any, options: dict[str, Any]) -> None:
    """Trains, and takes the same steps on the loss of the definition."""
    config, scope = lm.model.config, options["scope"]
    plain = {"temperature": 0.7, "rollout_batch": 7, **options}
    method = section(**plain, optimizer={"learning_rate": 0.05, "warmup": 1})
    made = method.make(lab(lm, folder))
    vectors = {layer: torch.zeros(config.hidden_size, requires_grad=True) for layer in range(config.num_hidden_layers)}
    optimizer = torch.optim.AdamW(list(vectors.values()), lr=0.05, weight_decay=0.0)
    for number, step in enumerate(rolled):
        loss = rloo_loss(lm, step, vectors, 3, 0.7, scope)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * min(1.0, (number + 1) / 2)
        optimizer.step()
        assert made.meta["curve"][number]["loss"] == pytest.approx(
            _surrogate(step, 3), abs=1e-6
        )  # on-policy, the ratio is one
    assert len(rolled) == 3
    for layer, vector in vectors.items():
        assert vector.norm() > 0.1
        torch.testing.assert_close(made.tensors[f"layer.{layer}"], vector.detach(), rtol=2e-3, atol=2e-5)


def test_learning_rates_can_follow_the_residual_stream(tmp_path: Path) -> None:
    """Adam's first step moves every coordinate by its learning rate: as stated, or in units of the layer's r.m.s."""
    lm = language_model("llama", torch.float32)
    for unit in ("absolute", "residual"):
        made = section(steps=1, optimizer={"learning_rate": 0.05, "unit": unit}).make(lab(lm, tmp_path / unit))
        for layer in range(3):
            size = made.meta["residual_norms"][str(layer)] / 4 if unit == "residual" else 1.0
            moved = made.tensors[f"layer.{layer}"].abs().median()
            assert float(moved) == pytest.approx(0.05 * size, rel=1e-3)


def test_random_rewards_are_fair_and_depend_on_nothing_that_is_written(tmp_path: Path, rolled: Any) -> None:
    lm = language_model("llama", torch.float32)
    section(steps=2, prompts=30, samples=10).make(lab(lm, tmp_path / "a"))
    section(steps=2, prompts=30, samples=10, temperature=0.5).make(lab(lm, tmp_path / "b"))
    texts, rewards = [step[1] for step in rolled], [step[2] for step in rolled]
    assert texts[0] != texts[2]
    assert rewards[:2] == rewards[2:]
    assert rewards[0] != rewards[1]
    assert abs(sum(rewards[0] + rewards[1])) < 3 * 600**0.5


def _surrogate(step: Any, samples: int) -> float:
    _, completions, rewards = step
    total = 0.0
    for row, completion in enumerate(completions):
        group = rewards[row // samples * samples : (row // samples + 1) * samples]
        total -= (rewards[row] - (sum(group) - rewards[row]) / (samples - 1)) * len(completion)
    return total / sum(map(len, completions))


@pytest.mark.parametrize("kind", [RlMethod, LoraMethod])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, kind: type[ReinforcedMethod]) -> None:
    lm = language_model("llama", torch.float32)
    # A spec cannot say both: random rewards, which move an untrained model, and a selection, which must be resumed too.
    method = section(kind, steps=5).model_copy(update={"selection": 4, "select_every": 2})
    whole = method.make(lab(lm, tmp_path / "whole"))
    torch.manual_seed(99)
    for kill_at in (2, 4):
        with pytest.raises(Killed):
            method.make(lab(lm, tmp_path / "killed", kill_at))
    resumed = method.make(lab(lm, tmp_path / "killed"))
    assert resumed.meta == whole.meta
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert [path.suffix for path in (tmp_path / "killed/scratch").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("kind", [RlMethod, LoraMethod])
def test_the_model_and_the_random_state_are_afterwards_as_before(tmp_path: Path, kind: type[ReinforcedMethod]) -> None:
    lm = language_model("llama", torch.float32)
    ids, mask = left_padded([[0, 5, 9], [0, 8]], 1, lm.device)
    before = lm.model(input_ids=ids, attention_mask=mask).logits
    attributes, names = set(vars(lm.model)), [name for name, _ in lm.model.named_modules()]
    config, tokenizer = lm.model.config.to_dict(), lm.tokenizer.pad_token
    drawn = torch.random.get_rng_state()
    section(kind, steps=1).make(lab(lm, tmp_path))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert set(vars(lm.model)) == attributes
    assert [name for name, _ in lm.model.named_modules()] == names
    assert (lm.model.config.to_dict(), lm.tokenizer.pad_token) == (config, tokenizer)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    assert torch.equal(lm.model(input_ids=ids, attention_mask=mask).logits, before)


def test_a_lora_adapter_is_pefts(tmp_path: Path) -> None:
    """Our intervention with trained weights equals a PeftModel that holds them."""
    from peft import LoraConfig, get_peft_model

    lm = language_model("llama", torch.float32)
    method = section(LoraMethod, steps=2, rank=2, layers=[0, 2])
    adapter = method.read(made := method.make(lab(lm, tmp_path)), lab(lm, tmp_path))
    ids, mask = left_padded([[0, 5, 9], [0, 8]], 1, lm.device)
    plain = lm.model(input_ids=ids, attention_mask=mask).logits
    with adapter.applied(lm) as receipt:
        adapted = lm.model(input_ids=ids, attention_mask=mask).logits
    assert (receipt.calls, receipt.tokens, receipt.steered) == (2, 10, 10)
    assert receipt.relative_size > 0
    other = language_model("llama", torch.float32)
    targets = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2)]
    peft: Any = get_peft_model(other.model, LoraConfig(r=2, lora_alpha=2, lora_dropout=0.0, target_modules=targets))
    for layer in (0, 2):
        projection = peft.base_model.model.model.layers[layer].mlp.down_proj
        for part in ("A", "B"):
            getattr(projection, f"lora_{part}")["default"].weight.data = made.tensors[f"{part}.{layer}"]
    assert torch.equal(peft(input_ids=ids, attention_mask=mask).logits, adapted)
    assert not torch.equal(plain, adapted)


def test_an_adapter_of_a_model_in_half_precision_is_trained_in_single(tmp_path: Path) -> None:
    lm = language_model("llama", torch.bfloat16)
    made = section(LoraMethod, steps=2, rank=2, layers=[0, 2]).make(lab(lm, tmp_path))
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in made.tensors.values())
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_pocket_model_learns_to_go_step_by_step(tmp_path: Path) -> None:
    """A short training already changes most answers; the problems it is measured on are not those it chose by."""
    from latentbench.interventions.rollouts import Sampling, answers
    from latentbench.steering.grading import same_last_number

    lm = PocketModel().load(Roots(tmp_path), torch.device("cpu"))
    plain = {"problems": {"adapter": "pocket"}, "steps": 5, "prompts": 16, "selection": 32}
    method = RlMethod.model_validate_json(json.dumps(plain))
    surroundings = lab(lm, tmp_path, model=PocketModel())
    made: Content = method.make(surroundings)
    problems = read_problems(PocketProblems(split="eval"), surroundings, 64)

    def accuracy() -> float:
        written = answers(lm, [problem.prompt for problem in problems], Sampling(96))
        return sum(same_last_number(w.text, p.answer) for w, p in zip(written, problems, strict=True)) / len(problems)

    base = accuracy()
    injection = method.read(made, surroundings)
    assert isinstance(injection, VectorInjection)
    with injection.applied(lm):
        steered = accuracy()
    assert steered > base + 0.3
    assert len(decoder_blocks(lm.model)) == len(injection.vectors.layers)


def test_prompts_bring_their_opening_token_or_get_one() -> None:
    lm = PocketModel().load(Roots(Path.cwd()), torch.device("cpu"))
    bare, opened = (
        prompt_ids(lm, ["Tom has 5 apples."]),
        prompt_ids(lm, ["<|bos|>Tom has 5 apples."]),
    )
    assert bare == opened
    assert bare[0].count(0) == 1


def test_a_checkpoint_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    parameters = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.zeros(2, 2))}
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.1)
    sum(parameter.square().sum() for parameter in parameters.values()).backward()
    optimizer.step()
    state = RlCheckpoint(step=1, best_step=1, best_accuracy=0.5, curve=[{"step": 1}])
    state.take(parameters, optimizer)
    state.best = dict(state.weights)
    state.save(tmp_path)
    back = RlCheckpoint.load(tmp_path)
    assert (back.step, back.best_step, back.best_accuracy, back.curve) == (1, 1, 0.5, [{"step": 1}])
    assert all(torch.equal(back.weights[name], parameter) for name, parameter in parameters.items())
    assert all(torch.equal(back.moments[n][m], state.moments[n][m]) for n in parameters for m in state.moments[n])
    content = (tmp_path / CHECKPOINT_FILE).read_bytes()
    for damaged in (content[:-4], b"", b"\0" * 100):
        (tmp_path / CHECKPOINT_FILE).write_bytes(damaged)
        assert RlCheckpoint.load(tmp_path) == RlCheckpoint()
