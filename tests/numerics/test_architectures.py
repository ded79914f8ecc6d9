"""Every cell of docs/architectures.md: it works and is right, or one sentence refuses it."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbench.activations.causality import check_causal
from latentbench.activations.residual import hook_point
from latentbench.core.errors import InvalidInput, LatentbenchError
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.lora import down_projections, installed_lora
from latentbench.mechanism.paths import path_patching
from latentbench.mechanism.propagation import attention_shift
from latentbench.steering.rl_policy import use_own_logits
from latentbench_adapters.model_loading import auto_class, load_model
from tests.support.architecture_table import PAGE, SILENT, TRIALS, VECTOR, page, tried
from tests.support.architectures import ARCHITECTURES, LAYERS, SIGHTED, WIDTH, WORDS, config_of, model_of
from tests.support.labs import words_tokenizer

QUICK = ("llama", "gpt2", "opt", "mixtral", "granite", "gemma3n_text", "gemma3", "qwen2_5_vl")
IDS = torch.randint(3, WORDS - 1, (2, 9), generator=torch.Generator().manual_seed(4))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES])
def test_what_the_page_says_of_an_architecture_is_so(name: str) -> None:
    found = tried(name)
    assert not {heading: cell for heading, cell in found.items() if SILENT in cell}
    assert _told(name) == found


def _told(name: str) -> dict[str, str]:
    """What the page says of an architecture, sentences in the places of their numbers."""
    text = PAGE.read_text("utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    (row,) = re.findall(rf"^\| {re.escape(name)} \| .* \|$", text, re.MULTILINE)
    cells = dict(zip(TRIALS, (cell.strip() for cell in row.split("|")[3:-1]), strict=True))
    return {heading: _sentence(cell, notes) for heading, cell in cells.items()}


def _sentence(cell: str, notes: dict[str, str]) -> str:
    works, _, marks = cell.partition(" [")
    why = " / ".join(notes[number] for number in re.findall(r"\d+", marks))
    return f"{works}: {why}" if works.startswith("block") else why or works


def test_the_page_lists_every_architecture_and_numbers_its_sentences() -> None:
    text = PAGE.read_text("utf-8")
    rows = re.findall(r"^\| (\S+) \| `", text, re.MULTILINE)
    assert rows == [*ARCHITECTURES]
    assert len(rows) >= 100
    used, known = (set(re.findall(pattern, text, re.MULTILINE)) for pattern in (r"\[(\d+)\]", r"^(\d+)\. "))
    assert used == known
    assert SILENT not in text
    made = page({name: _told(name) for name in ARCHITECTURES})
    assert made == text


@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_vl", "mistral3", "qwen3_5", "llama4", "voxtral"])
def test_a_folder_of_a_model_that_sees_or_hears_is_loaded_for_its_text(name: str, tmp_path: Any) -> None:
    from transformers import AutoModelForMultimodalLM

    whole: Any = AutoModelForMultimodalLM.from_config(config_of(name)).eval()
    whole.save_pretrained(tmp_path)
    words_tokenizer().save_pretrained(tmp_path)
    lm = load_model(str(tmp_path), None, "float32", torch.device("cpu"))
    with torch.no_grad():
        own, theirs = (model(input_ids=IDS, use_cache=False).logits for model in (lm.model, whole))
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("clip", "transformers has no class for its type 'clip' that predicts the next token"),
        ("florence2", "is an encoder and a decoder"),
        ("blip-2", "cannot run on text alone, it needs pixel_values"),
    ],
)
def test_what_has_no_text_decoder_is_refused_by_name(kind: str, sentence: str) -> None:
    from transformers import CONFIG_MAPPING

    with pytest.raises(InvalidInput, match=f"the model 'x' is no causal language model: .*{sentence}"):
        auto_class(CONFIG_MAPPING[kind](), "x")


@pytest.mark.parametrize("name", ["paligemma", "roberta-prelayernorm", "cpmant"])
def test_a_model_that_looks_ahead_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="depends on the tokens that follow"):
        check_causal(model_of(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "bert", "gemma3"])
def test_a_model_that_does_not_is_not(name: str, dtype: torch.dtype) -> None:
    check_causal(model_of(name, dtype))


class Experts(nn.Module):
    """An MLP with a shared part and one beside it, or a gate behind it."""

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.up, self.down_proj, self.other = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        shared: Tensor = self.down_proj(self.up(x).relu())
        if self.beside == "expert":
            return shared + self.other(x)
        return shared * self.other(x).sigmoid() if self.beside == "gate" else 0.5 * shared.tanh()


@pytest.mark.parametrize("beside", ["expert", "gate", ""])
def test_a_part_of_an_mlp_is_told_from_a_whole_one(beside: str) -> None:
    model: Any = model_of.__wrapped__("llama")
    torch.manual_seed(0)
    model.model.layers[1].mlp = Experts(beside)
    assert list(down_projections(model, (0, 2))) == [0, 2]
    if not beside:
        assert down_projections(model, (1,)) == {1: "model.layers.1.mlp.down_proj"}
        return
    with pytest.raises(
        InvalidInput, match=r"\(layer 1\): model.layers.1.mlp.down_proj is only a part of what this MLP adds"
    ):
        down_projections(model, (0, 1))


def test_an_adapter_goes_to_the_matrix_meant_and_leaves_nothing_behind() -> None:
    """In a model whose type is one with experts, peft would put it on those."""
    model = model_of.__wrapped__("deepseek_v3")
    before = {name: (type(part), part.training) for name, part in model.named_modules()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    lm = LanguageModel(model, words_tokenizer(), torch.device("cpu"))
    with installed_lora(lm, (1,), 2):
        adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert adapted == ["model.layers.1.mlp.down_proj.lora_A"]
    assert {name: (type(part), part.training) for name, part in model.named_modules()} == before
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("llama", False),
        ("gemma2", False),
        ("granite", False),
        ("modernbert-decoder", True),
        ("aya_vision", True),
        ("llama4", True),
    ],
)
def test_a_policy_has_the_log_probabilities_of_its_logits(name: str, replaced: bool) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model: Any = model_of.__wrapped__(name)
    own, labels = model.forward, IDS.clone()
    labels[:, :4] = -100
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    assert use_own_logits(model, 0.7, own) is replaced
    found = model(input_ids=IDS, labels=labels, fused_lm_head=True)
    every = torch.log_softmax(model(input_ids=IDS, use_cache=False).logits.double() / 0.7, -1)[:, :-1]
    wanted = every.gather(-1, IDS[:, 1:, None])[..., 0].where(labels[:, 1:] != -100, 0.0)
    torch.testing.assert_close(found.log_probs.double(), wanted, rtol=1e-4, atol=1e-5)
    entropy = -(every.exp() * every).sum(-1).where(labels[:, 1:] != -100, 0.0)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-4, atol=1e-5)


def test_a_block_that_does_not_run_has_no_hidden_states() -> None:
    for point in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
        with pytest.raises(InvalidInput, match=r"\(layer 3\) does not run on text alone"):
            hook_point(model_of("mllama"), Site(index=3, point=point))


def test_every_tower_gets_its_attention_back() -> None:
    from latentbench.mechanism.passages import eager_attention

    model: Any = model_of.__wrapped__("gemma3")
    model.config.vision_config._attn_implementation = "eager"
    before = [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")]
    assert {"eager", "sdpa"} <= set(before)
    with eager_attention(LanguageModel(model, words_tokenizer(), torch.device("cpu"))):
        assert model.config.get_text_config()._attn_implementation == "eager"
    assert [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")] == before


@pytest.mark.parametrize(
    "name", [n if n == "gemma3" else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]
)
def test_mechanism_studies_work_or_are_refused(name: str) -> None:
    from latentbench.interventions.injection import VectorInjection
    from latentbench.interventions.vectors import SteeringVectors
    from latentbench.mechanism.passages import Passages

    lm = LanguageModel(model_of(name).requires_grad_(False), words_tokenizer(), torch.device("cpu"))
    real = torch.arange(9) < torch.tensor([9, 6])[:, None]
    passages = Passages(IDS, real, torch.tensor([3, 4]))
    injection = VectorInjection(SteeringVectors({LAYERS - 2: VECTOR}))
    paths = None
    with suppress(LatentbenchError):  # anything else is no refusal
        paths = path_patching(lm, injection, passages)
    assert paths or name not in SIGHTED or name in ("mllama", "gemma4")
    if paths is None:
        return
    assert (paths.modes["no_patch"] > 0).all()
    assert paths.heads.shape == (2, paths.heads.shape[1])
    with suppress(LatentbenchError):  # where what the MLP adds is nowhere to be read
        further = path_patching(lm, injection, passages, ("groups", "paths", "entropies"))
        assert all(
            bool(found.isfinite().all()) for found in (further.modes | further.parts | further.entropies).values()
        )
        assert further.parts["heads_mlp"].shape == paths.heads.shape
        assert not paths.heads.shape[1] or paths.heads.shape[1] % further.parts["groups"].shape[1] == 0
    if name in ("gemma3", "llava", "mistral3", "qwen2_5_vl", "paligemma", "idefics3"):
        assert paths.heads.shape[1] == 4  # those of the text decoder
        assert attention_shift(lm, injection, passages).heads.shape == (2, LAYERS, 4)
