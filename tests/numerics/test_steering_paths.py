"""Path patching told apart by where attention's output goes, by group of heads and by entropy: against a block written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig

from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.injection import VectorInjection
from latentbench.mechanism.metrics.paths import MODES, PathPatching
from latentbench.mechanism.passages import Passages, trace
from latentbench.mechanism.paths import PathPatchingSums, _number_of_groups, divergence, entropy, path_patching
from latentbench_adapters.pocket.adapter import PocketProblems
from tests.numerics.test_steering_mechanism import LAYERS, WIDTH, WORDS, Letters, injection, language_model, passages

HEADS, GROUPS, SIZE = 4, 2, WIDTH // 4


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """In float64, where two heads share their keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        vocab_size=WORDS,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel(model, Letters(), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def steered() -> VectorInjection:
    return injection(LAYERS - 2)


@pytest.fixture(scope="module")
def text(lm: LanguageModel, steered: VectorInjection) -> Passages:
    return passages(lm, steered)


@pytest.fixture(scope="module")
def found(lm: LanguageModel, steered: VectorInjection, text: Passages) -> PathPatchingSums:
    return path_patching(lm, steered, text, ("groups", "paths", "entropies"))


@pytest.fixture(scope="module")
def block(lm: LanguageModel, steered: VectorInjection, text: Passages) -> tuple[Tensor, Tensor, Tensor]:
    """The last block's steered input, and its heads' outputs side by side, steered and plain: what its o_proj reads."""
    read: list[Tensor] = []
    handle = lm.model.model.layers[-1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    site = Site(index=LAYERS - 1, point="resid_pre")
    plain = trace(lm, text, None, [site]).states[site]
    trace(lm, text, steered)
    handle.remove()
    return plain + steered.deltas[LAYERS - 2].double(), read[1], read[0]


@torch.no_grad()
def written_out(
    lm: LanguageModel, text: Passages, block: tuple[Tensor, Tensor, Tensor], patched: list[int], path: str
) -> tuple[Tensor, Tensor]:
    """KL and entropy [B] with the outputs of the heads `patched` plain, along `path`."""
    last: Any = lm.model.model.layers[-1]
    stream, steered, plain = block
    columns = [c for head in patched for c in range(head * SIZE, (head + 1) * SIZE)]
    mixed = steered.clone()
    mixed[..., columns] = plain[..., columns]
    unpatched, changed = last.self_attn.o_proj(steered), last.self_attn.o_proj(mixed)
    into_mlp = unpatched if path == "_residual" else changed
    onwards = unpatched if path == "_mlp" else changed
    mlp = last.mlp(last.post_attention_layernorm(stream + into_mlp))
    logits = lm.model.lm_head(lm.model.model.norm(stream + onwards + mlp))
    kl = divergence(trace(lm, text).logits, logits)
    uncertain = torch.distributions.Categorical(logits=logits).entropy()
    return (kl * text.predicting).sum(1), (uncertain * text.predicting).sum(1)


@pytest.mark.parametrize("path", ["", "_residual", "_mlp"])
def test_each_path_is_a_block_whose_mlp_and_stream_read_different_attention(
    path: str, lm: LanguageModel, text: Passages, block: tuple[Tensor, Tensor, Tensor], found: PathPatchingSums
) -> None:
    every = list(range(HEADS))
    kl, uncertain = written_out(lm, text, block, every, path)
    torch.testing.assert_close(found.modes[f"skip_attention{path}"], kl)
    torch.testing.assert_close(found.entropies[f"skip_attention{path}"], uncertain)
    together = {"heads": [[head] for head in every], "groups": [[0, 1], [2, 3]]}
    for name, sets in together.items():
        for number, heads in enumerate(sets):
            others = [head for head in every if head not in heads]
            alone, inverse = (written_out(lm, text, block, chosen, path)[0] for chosen in (heads, others))
            torch.testing.assert_close(found.parts[f"{name}{path}"][:, number], alone)
            torch.testing.assert_close(found.parts[f"only_{name}{path}"][:, number], inverse)
        assert found.parts[f"{name}{path}"].shape == (len(text), len(sets))


def test_entropies_are_those_of_the_plain_and_of_every_other_distribution(
    lm: LanguageModel, steered: VectorInjection, text: Passages, found: PathPatchingSums
) -> None:
    assert found.entropies.keys() == {"plain", *found.modes}
    for mode, way in (("plain", None), ("no_patch", steered)):
        expected = torch.distributions.Categorical(logits=trace(lm, text, way).logits).entropy()
        torch.testing.assert_close(found.entropies[mode], (expected * text.predicting).sum(1))


def test_a_word_that_cannot_be_said_adds_no_entropy() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    torch.testing.assert_close(entropy(logits), torch.tensor([[2.0]], dtype=torch.float64).log())


def test_what_was_measured_before_does_not_change(
    lm: LanguageModel, steered: VectorInjection, text: Passages, found: PathPatchingSums
) -> None:
    before = path_patching(lm, steered, text)
    assert before.entropies == {}
    assert before.parts.keys() == {"heads", "only_heads"}
    for name, values in (before.modes | before.parts).items():
        assert torch.equal(values, (found.modes | found.parts)[name])


def test_beside_an_mlp_that_reads_no_attention_everything_goes_through_the_stream() -> None:
    """GPT-NeoX's attention and MLP stand side by side."""
    lm, way = language_model("neox"), injection(LAYERS - 2)
    found = path_patching(lm, way, passages(lm, way), ("paths",))
    torch.testing.assert_close(found.modes["skip_attention_residual"], found.modes["skip_attention"])
    torch.testing.assert_close(found.modes["skip_attention_mlp"], found.modes["no_patch"])


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    ],
)
def test_groups_of_falcons(options: dict[str, Any], groups: int) -> None:
    config = FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, vocab_size=9, **options)
    lm = LanguageModel(AutoModelForCausalLM.from_config(config), Letters(), torch.device("cpu"))  # type: ignore[arg-type]
    assert _number_of_groups(lm, 4) == groups


def test_what_is_measured_besides_is_written_and_named_only_where_it_is_asked_for() -> None:
    def asked(**fields: Any) -> PathPatching:
        return PathPatching(problems_from=PocketProblems(), **fields)

    assert "also" not in asked().plain()
    assert len(asked().numbers()) == 2 * len(MODES) - 1
    every = asked(also=("entropies", "paths", "paths", "groups"))
    assert every == asked(also=("groups", "paths", "entropies"))
    assert every.plain()["also"] == ["groups", "paths", "entropies"]
    names = {number.id for number in every.numbers()} - {number.id for number in asked().numbers()}
    assert {"path_patching.kept_skip_attention_mlp", "path_patching.entropy_plain"} < names
    assert len(names) == 4 + 1 + len(MODES) + 2
