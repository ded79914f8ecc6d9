"""Ids that the model does not know: none is put beside a text, and a text that holds one is told before it is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from latentbench.activations.tokens import evaluation_tokens, training_tokens
from latentbench.activations.vocabulary import check_ids, embedding_rows, end_ids, known, padding_id, padding_of
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, Problem
from latentbench.core.sites import Site
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.latents.first_letter import vocabulary_words, word_states
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.sae.autoencoder import Codes
from latentbench.steering.build import residual_norms
from latentbench.steering.optimised import RlMethod
from latentbench_adapters.transformers_model import TransformersModel
from tests.conftest import Command
from tests.support.labs import VOCABULARY, words_tokenizer
from tests.support.passes import ToySAE, flat
from tests.support.project import Workbench, write_jsonl
from tests.support.steering import CONFIGS, WordProblems, lab, language_model
from tests.support.writing import WAYS

pytestmark = pytest.mark.usefixtures("one_thread")

REAL = Path(__file__).parents[3] / "shared/real"


def padded_with(name: str, pad: str | None, seed: int = 0) -> LanguageModel:
    """A tiny model whose tokenizer pads with `pad`; `<pad>` is a token that the model has no embedding for."""
    lm = language_model(name, torch.float32, seed)
    if pad is not None:
        lm.tokenizer.add_special_tokens({"pad_token": pad})
    assert lm.tokenizer.pad_token_id == {"<unk>": 2, "<pad>": embedding_rows(lm.model), None: None}[pad]
    return lm


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_is_written_does_not_depend_on_padding_the_model_does_not_know(name: str) -> None:
    proper, strange, none = (padded_with(name, pad) for pad in ("<unk>", "<pad>", None))
    expected = {place: way(proper) for place, way in WAYS.items()}
    for lm in (strange, none):
        before = lm.tokenizer.pad_token
        assert {place: way(lm) for place, way in WAYS.items()} == expected
        assert lm.tokenizer.pad_token == before


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(0, 99))
def test_what_is_measured_does_not_depend_on_it(lengths: list[int], seed: int) -> None:
    texts = [" ".join(f"w{3 + (7 * n + 11 * i) % 110}" for i in range(length)) for n, length in enumerate(lengths)]
    found, norms = [], []
    for pad in ("<unk>", "<pad>", None):
        lm = padded_with("gpt2", pad, seed)
        tokens = evaluation_tokens(texts, lm.tokenizer, context=14, known_ids=embedding_rows(lm.model))
        assert int(tokens.ids.max()) < VOCABULARY
        request = MeasurementRequest("toy", ToySAE(), Site(index=1), splice=True)
        results = flat(measure(lm, tokens, [request], forward_tokens=60))
        found.append({name: values.tolist() for name, values in results.items()})
        norms.append(residual_norms(lm, (1, 2), texts))
    assert json.dumps(found[0]) == json.dumps(found[1]) == json.dumps(found[2])
    assert norms[0] == norms[1] == norms[2]


def test_a_training_by_reinforcement_does_not_depend_on_it(tmp_path: Path) -> None:
    asked = {"problems": {"adapter": "pocket"}, "steps": 2, "prompts": 4, "samples": 3, "max_new_tokens": 6}
    asked |= {"reward": "random", "selection": 0}
    method = RlMethod.model_validate_json(json.dumps(asked)).model_copy(update={"problems": WordProblems()})
    made = [method.make(lab(padded_with("llama", pad), tmp_path / str(pad))) for pad in ("<unk>", "<pad>", None)]
    for other in made[1:]:
        assert other.meta == made[0].meta
        assert all(torch.equal(tensor, made[0].tensors[name]) for name, tensor in other.tensors.items())
    assert made[0].meta["curve"][1]["norm"] > 0


def test_a_training_names_a_prompt_that_cannot_be_answered_before_it_starts(tmp_path: Path) -> None:
    class Problems(WordProblems):
        def problems(self, roots: Roots) -> Iterator[Problem]:
            yield from (Problem(f"w{n + 3}", "1") for n in range(11))
            yield Problem(self.last, "1")

        last: str = ""

    asked = {"problems": {"adapter": "pocket"}, "steps": 3, "prompts": 4, "samples": 3, "reward": "random"}
    method = RlMethod.model_validate_json(json.dumps({**asked, "selection": 0, "max_new_tokens": 6}))
    lm = enlarged()
    for last, said in (("w4 turn", SAID), ("w4 " * 3000, "a prompt of 3000 tokens leaves no room .* context of 2048")):
        with pytest.raises(InvalidInput, match=said):
            method.model_copy(update={"problems": Problems(last=last)}).make(lab(lm, tmp_path))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="the real model is not here")
def test_a_real_model_gives_the_same_with_a_token_added_for_padding() -> None:
    def loaded() -> LanguageModel:
        return TransformersModel(id="./stories260k").load(Roots(REAL), torch.device("cpu"))

    lines = (REAL / "text/tinystories.jsonl").read_text("utf-8").splitlines()[:9]
    stories = [json.loads(line)["text"][: 60 + 90 * n] for n, line in enumerate(lines)]

    class Halves(ToySAE):
        """Half of each hidden state."""

        def __init__(self) -> None:
            super().__init__()
            self.width = 32

        def encode(self, x: torch.Tensor, budget: int | None = None) -> Codes:
            return Codes(x[:, :32], torch.arange(32).expand(len(x), 32))

        def decode(self, codes: Codes) -> torch.Tensor:
            return torch.cat([codes.values, torch.zeros_like(codes.values)], 1)

    def seen(lm: LanguageModel) -> Any:
        tokens = evaluation_tokens(stories, lm.tokenizer, context=64, known_ids=embedding_rows(lm.model))
        results = flat(measure(lm, tokens, [MeasurementRequest("half", Halves(), Site(index=2), splice=True)]))
        said = answers(lm, [story[:40] for story in stories], Sampling(20))
        return json.dumps({name: values.tolist() for name, values in results.items()}), said

    proper, strange = loaded(), loaded()
    proper.tokenizer.pad_token = proper.tokenizer.eos_token
    strange.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert strange.tokenizer.pad_token_id >= embedding_rows(strange.model)
    assert seen(strange) == seen(proper)


# -- which id is put beside a text --------------------------------------------------------------------------------------


@given(*(st.one_of(st.none(), st.integers(0, 40)) for _ in range(3)), st.integers(1, 40))
def test_padding_is_an_id_the_model_knows(pad: int | None, eos: int | None, bos: int | None, rows: int) -> None:
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=eos, bos_token_id=bos)
    found = padding_id(tokenizer, rows)
    assert 0 <= found < rows
    usable = [token for token in (pad, eos, bos) if token is not None and token < rows]
    assert found == (usable[0] if usable else 0)
    assert padding_id(tokenizer, None) == next((token for token in (pad, eos, bos) if token is not None), 0)


def test_end_tokens_the_model_cannot_write_are_none() -> None:
    lm = language_model("llama")
    for listed, ends in ((None, {1}), (7, {1, 7}), ([7, 10**6, 8], {1, 7, 8}), (10**6, {1}), (-1, {1}), ([], {1})):
        lm.model.generation_config.eos_token_id = listed
        assert end_ids(lm) == ends
    for listed in ("</s>", [[1]], [1, 1.5]):
        lm.model.generation_config.eos_token_id = listed
        with pytest.raises(InvalidInput, match="ids are whole numbers"):
            end_ids(lm)
    lm.tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert lm.tokenizer.eos_token_id == VOCABULARY
    lm.model.generation_config.eos_token_id = None
    assert end_ids(lm) == set()
    assert padding_of(lm) == 0  # the opening token's
    assert {place: way(lm) for place, way in WAYS.items()}


def test_an_opening_or_closing_token_the_model_does_not_know_is_as_good_as_none() -> None:
    def rows(tokenizer: Any, known_ids: int | None) -> tuple[list[list[int]], list[list[int]]]:
        texts, more = ["w4 w5", "w6 w7 w8"], {"context": 4, "known_ids": known_ids}
        return (
            evaluation_tokens(texts, tokenizer, **more).ids.tolist(),
            training_tokens(texts, tokenizer, tokens=4, **more).ids.tolist(),
        )

    without = words_tokenizer()
    without.bos_token = without.eos_token = None
    strange = words_tokenizer()
    strange.add_special_tokens({"bos_token": "<mine>", "eos_token": "<mine>"})
    assert rows(strange, VOCABULARY) == rows(without, VOCABULARY) == ([[4, 5, 0, 0], [6, 7, 8, 0]], [[4, 5, 6, 7]])
    assert rows(strange, None)[0][0][0] == VOCABULARY


# -- texts with tokens the model does not know --------------------------------------------------------------------------


def enlarged() -> LanguageModel:
    """A tokenizer that somebody taught the word `turn`, for which the model has no embedding."""
    lm = language_model("llama", torch.float32)
    lm.tokenizer.add_tokens(["turn", "Toads"])
    return lm


SAID = r"the token 'turn' has the id 120, but the model's embedding ends at 119: the tokenizer has 122 tokens"


def test_a_document_with_such_a_token_is_refused_by_name() -> None:
    tokenizer, texts = enlarged().tokenizer, ["w4 w5", "w5 turn w6"]
    for read in (
        lambda known_ids: evaluation_tokens(texts, tokenizer, context=4, known_ids=known_ids),
        lambda known_ids: training_tokens(texts, tokenizer, context=6, tokens=6, known_ids=known_ids),
    ):
        with pytest.raises(InvalidInput, match="^the document that starts with 'w5 turn w6': " + SAID):
            read(VOCABULARY)
        assert int(read(VOCABULARY + 1).ids.max()) == VOCABULARY
    assert len(evaluation_tokens(texts, tokenizer, context=2, known_ids=VOCABULARY).ids) == 2  # cut off before it


def test_a_prompt_or_question_with_such_a_token_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = enlarged()
    monkeypatch.setattr("tests.support.writing.PROMPTS", ("w4", "w5 turn"))
    for place in ("evaluation, greedy", "evaluation, likelihoods", "training, greedy", "mechanism"):
        with pytest.raises(InvalidInput, match=SAID):
            WAYS[place](lm)
    with pytest.raises(InvalidInput, match=r"^the prompt 'w5 turn': "):
        residual_norms(lm, (0,), ["w4", "w5 turn"])
    monkeypatch.setattr("tests.support.writing.PROMPTS", ("turn",))
    text, error, _ = WAYS["judge"](lm)
    assert text is None
    assert str(error).startswith("the chat template and the messages: the token 'turn' has the id 120")


def test_words_the_model_does_not_know_are_none_of_its_vocabulary() -> None:
    lm = enlarged()
    assert vocabulary_words(lm.tokenizer, 9).keys() == {"turn", "toads"}
    assert vocabulary_words(lm.tokenizer, 9, VOCABULARY) == {}
    assert len(word_states(lm, Site(index=0), "w4", 9)) == 0
    with pytest.raises(InvalidInput, match="^the prefix 'w4 turn': " + SAID):
        word_states(lm, Site(index=0), "w4 turn", 9)


def test_ids_are_checked_against_what_is_known() -> None:
    tokenizer = words_tokenizer()
    check_ids([], tokenizer, 5)
    check_ids([0, 4], tokenizer, 5)
    check_ids([10**6], tokenizer, None)
    with pytest.raises(InvalidInput, match="the token 'w5' has the id 5, but the model's embedding ends at 4"):
        check_ids([1, 5, 7], tokenizer, 5)
    assert [known(token, 5) for token in (None, 0, 4, 5)] == [None, 0, 4, None]


def test_more_rows_than_tokens_are_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are rounded up: a model may even write such an id, which stands for no text."""
    monkeypatch.setitem(CONFIGS, "llama", copy.deepcopy(CONFIGS["llama"]))
    lm = language_model("llama", torch.float32)
    lm.model.resize_token_embeddings(400, mean_resizing=False)
    for weight in (lm.model.get_input_embeddings().weight, lm.model.get_output_embeddings().weight):
        weight.data[VOCABULARY:] = weight.data[3 : 3 + 400 - VOCABULARY].repeat(3, 1)[: 400 - VOCABULARY] * 1.5
    written: Mapping[str, Any] = {place: way(lm) for place, way in WAYS.items()}
    assert any(token >= VOCABULARY for _, ids, _ in written["training, sampled"] for token in ids)


# -- through the command line -------------------------------------------------------------------------------------------


def retokenized(bench: Workbench, **added: Any) -> None:
    folder = str(bench.root / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(added.pop("words", []))
    tokenizer.add_special_tokens(added)
    tokenizer.save_pretrained(folder)


def test_a_run_on_short_documents_survives_such_padding(bench: Workbench, command: Command) -> None:
    retokenized(bench, pad_token="<pad>")
    write_jsonl(bench.root / "data/eval.jsonl", ["acid", "gas metal water", "ore salt acid base " * 3] * 2)
    bench.spec()
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    assert all(value.value is not None for value in record.metrics)


@pytest.mark.parametrize("padding", [23, 10**6, -1])
def test_a_configuration_with_such_padding_is_loaded(bench: Workbench, padding: int) -> None:
    """torch builds no embedding with a padding row it does not have."""
    roots, model = bench.project.roots, TransformersModel(id="./model")
    plain = model.load(roots, torch.device("cpu"))
    for name in ("config.json", "generation_config.json"):
        file = bench.root / "model" / name
        bench.write(f"model/{name}", json.dumps(json.loads(file.read_text()) | {"pad_token_id": padding}))
    assert model.hook_module(roots, Site(index=1)) == "model.layers.1"
    loaded, ids = model.load(roots, torch.device("cpu")), torch.tensor([[0, 5, 9, 22]])
    assert torch.equal(loaded.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)
    prompts = ["acid base", "gas"]
    assert answers(loaded, prompts, Sampling(5)) == answers(plain, prompts, Sampling(5))


def test_a_run_says_which_token_the_model_does_not_know(bench: Workbench, command: Command) -> None:
    retokenized(bench, words=["turn"])
    write_jsonl(bench.root / "data/train.jsonl", ["acid gas " * 600, "ore turn salt " * 50])
    bench.spec(dataset__train__tokens=1350)
    done = command("run", "mine", "--executor", "inline")
    assert done.code != 0
    said = " ".join((done.out + done.err).split())
    assert "the token 'turn' has the id 23, but the model's embedding ends at 22" in said
    assert "the document that starts with 'ore turn salt" in said
    assert "Traceback" not in said
