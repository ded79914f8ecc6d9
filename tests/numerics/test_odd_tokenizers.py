"""Tokenizers that lack some or all special tokens: batches give what each text gives alone, in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from latentbench.activations.tokens import evaluation_tokens, special_mask, training_tokens
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.steering.build import residual_norms, residuals
from latentbench_adapters.lm_eval.steered_model import SteeredLM
from tests.support.labs import VOCABULARY
from tests.support.packing import packed_rows
from tests.support.steering import CONFIGS, WIDTH, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
SUBSETS = [
    tuple(name for name, there in zip(NAMES, chosen, strict=True) if there) for chosen in product((0, 1), repeat=4)
]
PROMPTS = ["w5 w9 w30 w7 w44", "w8", "w50 w51"]
NEW = 6


def tokenizer(names: tuple[str, ...]) -> Any:
    """Whole words `w0` … with those special tokens that are named; only a BOS is put before texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {name: f"<{name[:3]}>" for name in names}
    words = [*special.values(), *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "bos_token" in special:
        made.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def model(names: tuple[str, ...], kind: str = "llama") -> LanguageModel:
    lm = language_model(kind)
    settings: Any = lm.model.generation_config
    settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = None
    return LanguageModel(lm.model, tokenizer(names), lm.device)


def greedy(lm: LanguageModel, ids: list[int], end: int | None, steps: int = NEW) -> list[int]:
    """Written token by token, alone, without padding or a cache; the end token is not kept."""
    written: list[int] = []
    for _ in range(steps):
        network: Any = lm.model
        token = int(network(torch.tensor([[*ids, *written]])).logits[0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return written


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(n[:3] for n in names) or "none")
def test_answers_in_a_batch_are_those_of_each_prompt_alone(names: tuple[str, ...]) -> None:
    lm = model(names)
    alone = [greedy(lm, lm.tokenizer(prompt)["input_ids"], lm.tokenizer.eos_token_id) for prompt in PROMPTS]
    texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in alone]
    rolled = answers(lm, PROMPTS, Sampling(NEW))
    assert [[i for i in answer.ids if i != lm.tokenizer.eos_token_id] for answer in rolled] == alone
    settings = {"until": ["never"], "max_gen_toks": NEW}
    found = SteeredLM(lm).answers(asked("generate_until", *((prompt, settings) for prompt in PROMPTS)))
    assert [answer.text for answer in found] == texts
    assert [answer.tokens for answer in found] == [len(ids) for ids in alone]


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(n[:3] for n in names) or "none")
def test_choices_in_a_batch_are_as_likely_as_each_alone(names: tuple[str, ...]) -> None:
    lm = model(names)
    pairs = [("w5 w9", " w30 w7 w44"), ("w8", " w9"), ("w50 w51 w52 w53", " w54")]
    for (value, sure), (context, more) in zip(
        SteeredLM(lm).loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True), pairs, strict=True
    ):
        before, ids = (lm.tokenizer(text)["input_ids"] for text in (context, context + more))
        network: Any = lm.model
        rows = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        behind = range(len(before), len(ids))
        assert value == pytest.approx(sum(float(rows[i - 1, ids[i]]) for i in behind), abs=1e-5)
        assert sure == all(int(rows[i - 1].argmax()) == ids[i] for i in behind)


@pytest.mark.parametrize("context", ["", " "])
def test_a_choice_without_a_question_is_read_behind_a_token_or_refused(context: str) -> None:
    network: Any = model(()).model
    for name in ("bos_token", "eos_token"):
        lm = model((name,))
        (found,) = SteeredLM(lm).loglikelihood(asked("loglikelihood", (context, "w9 w8")), disable_tqdm=True)
        ids = [0, *lm.tokenizer("w9 w8", add_special_tokens=False)["input_ids"]]
        rows = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert found[0] == pytest.approx(float(rows[0, ids[1]] + rows[1, ids[2]]), abs=1e-5)
    with pytest.raises(InvalidInput, match="neither bos_token nor eos_token"):
        SteeredLM(model(())).loglikelihood(asked("loglikelihood", (context, "w9 w8")), disable_tqdm=True)


@pytest.mark.parametrize("choice", ["", "w9 " * 70])
def test_a_choice_that_cannot_be_read_is_refused_in_one_sentence(choice: str) -> None:
    lm = short_model()
    with pytest.raises(InvalidInput, match=r"a choice has \d+ tokens; this model reads 1 to 16"):
        SteeredLM(lm).loglikelihood(asked("loglikelihood", ("w5", choice and " " + choice.strip())), disable_tqdm=True)


def short_model(kind: str = "gpt2") -> LanguageModel:
    """One with 16 positions."""
    from transformers import AutoModelForCausalLM

    config = type(CONFIGS[kind])(**CONFIGS[kind].to_dict() | {"max_position_embeddings": 16, "n_positions": 16})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = AutoModelForCausalLM.from_config(config)
    return LanguageModel(made.double().eval().requires_grad_(False), tokenizer(()), torch.device("cpu"))


def test_questions_of_choices_that_are_cut_are_counted_once() -> None:
    steered, long = SteeredLM(short_model()), "w7 " * 30
    requests = asked("loglikelihood", (long.strip(), " w8"), (long.strip(), " w9"), ("w5", " w6"))
    steered.loglikelihood(requests, disable_tqdm=True)
    assert steered.shortened == 1


@pytest.mark.parametrize("names", [(), ("eos_token",)])
def test_an_empty_prompt_without_an_opening_token_is_refused(names: tuple[str, ...]) -> None:
    lm = model(names)
    with pytest.raises(InvalidInput, match="a prompt is empty"):
        answers(lm, ["w5", ""], Sampling(2))
    with pytest.raises(InvalidInput, match="a question is empty"):
        SteeredLM(lm).answers(asked("generate_until", ("w5", {"max_gen_toks": 2}), ("", {"max_gen_toks": 2})))
    assert len(answers(model(("bos_token",)), ["w5", ""], Sampling(2))) == 2


def test_empty_texts_have_no_part_in_the_mean_norm() -> None:
    lm, texts = model(()), ["w5 w6 w7", "w8 w9"]
    assert residual_norms(lm, [1], ["", texts[0], " ", texts[1]]) == residual_norms(lm, [1], texts)
    assert residual_norms(lm, [1], ["", " "]) == {}


def test_long_texts_are_cut_for_norms_and_refused_where_they_count_whole() -> None:
    lm, words = short_model(), [f"w{i}" for i in range(5, 35)]
    assert residual_norms(lm, [1], [" ".join(words)]) == residual_norms(lm, [1], [" ".join(words[:16])])
    with pytest.raises(InvalidInput, match="a text of 30 tokens is longer than the model's 16 positions"):
        list(residuals(lm, [1], ["w5", " ".join(words)]))
    (read,) = residuals(short_model("llama"), [1], [" ".join(words)])
    assert read.states[1].shape[1] == 30


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_answer_ends_where_the_positions_do_and_a_prompt_without_room_is_refused(architecture: str) -> None:
    prompt = " ".join(["w5"] * 10)
    lm = short_model(architecture)
    assert len(answers(lm, [prompt], Sampling(6))[0].ids) == 6
    short, cut = answers(lm, ["w5", prompt], Sampling(7))
    assert len(short.ids) == 7
    assert (len(cut.ids), cut.truncated) == (6, True)
    with pytest.raises(InvalidInput, match="a prompt of 16 tokens leaves no room for 1 more in the context"):
        answers(lm, ["w5", " ".join(["w5"] * 16)], Sampling(1))


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(n[:3] for n in names) or "none")
def test_documents_begin_and_end_with_what_the_tokenizer_has(names: tuple[str, ...]) -> None:
    made, texts = tokenizer(names), ["w5 w6 w7", "w8 w9"]
    words = [made(text, add_special_tokens=False)["input_ids"] for text in texts]
    begin = [made.bos_token_id] if "bos_token" in names else []
    rows = evaluation_tokens(texts, made, context=6)
    for row, length, ids in zip(rows.ids, rows.lengths, words, strict=True):
        assert row[: int(length)].tolist() == [*begin, *ids]
        assert ((row >= 0) & (row < VOCABULARY)).all()
    expected = packed_rows(words, 3, *(begin or [None]), made.eos_token_id if "eos_token" in names else None)
    trained = training_tokens(texts, made, context=3, tokens=3 * len(expected)).ids
    assert trained.tolist() == expected
    kept = {getattr(made, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token") if name in names}
    assert special_mask(trained, made).tolist() == [[i in kept for i in row] for row in trained.tolist()]


def test_the_width_of_the_models_here_is_that_of_the_vocabulary() -> None:
    """A padding token that lm-eval makes up would be one row too many."""
    from lm_eval.models.huggingface import HFLM

    from latentbench_adapters.lm_eval.tasks import quiet

    lm = model(())
    with quiet():
        theirs = HFLM(pretrained=lm.model, tokenizer=tokenizer(()), batch_size=2)
    assert theirs.tokenizer.pad_token_id == VOCABULARY
    assert lm.model.get_input_embeddings().weight.shape == (VOCABULARY, WIDTH)
