"""The companions of autointerp as studies: on a lab by hand, on SAEs whose latents follow known rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentbench.autointerp.scores import LatentDetail
from latentbench.core.errors import CellFailed
from latentbench.core.hashing import digest
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.latents import first_letter
from latentbench.latents.absorption import Absorption
from latentbench.latents.decoder import Decoder
from latentbench.latents.firing import Latents
from latentbench.latents.first_letter import letters_of, vocabulary_words
from latentbench.latents.sparse_probing import SparseProbing
from latentbench.latents.survey import Survey
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.report.latents import chosen, short
from latentbench.sae import options as o
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.study.context import Content, StageContext
from latentbench.study.storage import read_content, write_content
from latentbench.study.study import Findings, Study
from tests.support.labs import (
    CONTEXT,
    SITE,
    VOCABULARY,
    RuleSAE,
    fires_at_random,
    fires_on,
    lab_of,
    random_texts,
    tiny_language_model,
    token_sets,
)
from tests.support.saes import built

pytestmark = pytest.mark.usefixtures("one_thread")


def values(study: Study, found: Findings) -> dict[tuple[str, str | None, Any], MetricValue]:
    """Numbers by id, domain and number of latents, as a record would hold them."""
    made = [*metric_values([study], found.statistics), *found.values]
    assert len({(v.id, v.domain, str(v.params)) for v in made}) == len(made), "every number once"
    return {(value.id, value.domain, value.params.get("latents")): value for value in made}


def test_latents_that_follow_two_words_have_one_bit(tmp_path: Path) -> None:
    sets = token_sets(6)
    found = Latents().run(lab_of(tmp_path, 6, fires_on(sets)))
    entropy = found.statistics["lab"]["latents.token_entropy"]
    assert np.all((entropy > 0.95) & (entropy <= 1))
    survey = Survey.of({name.removeprefix("lab/"): tensor for name, tensor in found.tensors.items()})
    for latent, words in enumerate(sets.tolist()):
        assert set(survey.top_tokens[latent, :2].tolist()) == set(words)
        assert survey.top_counts[latent, 2:].sum() == 0
        ids, active = survey.examples.ids[latent], survey.examples.activations[latent]
        assert set(ids[active > 0].tolist()) <= set(words), "what is coloured is what it fires on"


def test_a_random_latent_has_the_entropy_of_the_text(tmp_path: Path) -> None:
    found = Latents().run(lab_of(tmp_path, 3, fires_at_random(3, 0.2)))
    numbers = values(Latents(), found)
    entropy = numbers["latents.token_entropy", "lab", None]
    assert entropy.value == pytest.approx(np.log2(VOCABULARY - 3), abs=0.15)
    assert numbers["latents.dense_fraction", "lab", None].value == 1
    assert numbers["latents.log_density", "lab", None].value == pytest.approx(np.log10(0.2), abs=0.05)


def test_dead_latents_count_for_nothing(tmp_path: Path) -> None:
    sets = token_sets(12)
    alive = Latents().run(lab_of(tmp_path, 12, fires_on(sets)))
    dead = Latents().run(lab_of(tmp_path, 14, fires_on(torch.cat([sets, torch.tensor([[0, 0], [0, 0]])]))))
    with_dead, without = values(Latents(), dead), values(Latents(), alive)
    for key, value in without.items():
        assert with_dead[key].value == pytest.approx(value.value)
        assert with_dead[key].n == 14
    assert dead.details["domains"]["lab"]["density_histogram"]["dead"] == 2


def test_nothing_fires(tmp_path: Path) -> None:
    found = Latents().run(lab_of(tmp_path, 3, fires_on(torch.zeros(3, 2, dtype=torch.int64))))
    assert all(v.value is None and v.null_reason for v in values(Latents(), found).values())


def with_sae(lab: StageContext, sae: SparseAutoencoder) -> StageContext:
    return replace(lab, saes=lambda: {SITE: sae})


def test_decoder_against_the_whole_matrix(tmp_path: Path) -> None:
    sae = built(o.TopKOptions(width=48, k=5))
    found = Decoder().run(with_sae(lab_of(tmp_path, 1, fires_on(token_sets(1))), sae))
    rows = torch.nn.functional.normalize(sae.decoder_rows().double(), dim=1)  # type: ignore[union-attr]
    cosines = (rows @ rows.t()).fill_diagonal_(-1)
    encoder = torch.nn.functional.normalize(sae.encoder.weight.double(), dim=1)  # type: ignore[union-attr,operator]
    numbers = values(Decoder(), found)
    assert numbers["decoder.max_cosine", "weights", None].value == pytest.approx(float(cosines.amax(1).mean()))
    assert numbers["decoder.encoder_cosine", "weights", None].value == pytest.approx(
        float((rows * encoder).sum(1).mean())
    )
    assert numbers["decoder.max_cosine", "weights", None].ci is not None


def test_no_encoder_cosine_without_a_linear_encoder(tmp_path: Path) -> None:
    sae = built(o.KronOptions(width=48, k=5, m=2, n=4))
    found = Decoder().run(with_sae(lab_of(tmp_path, 1, fires_on(token_sets(1))), sae))
    (missing,) = (v for v in metric_values([Decoder()], found.statistics) if v.value is None)
    assert (missing.id, missing.null_reason) == (
        "decoder.encoder_cosine",
        "not measured: decoder.linear_encoder_cosine",
    )
    assert found.values == (), "or the record would hold the number twice"
    identity = o.IdentityOptions().build(12, torch.Generator())
    found = Decoder().run(with_sae(lab_of(tmp_path, 1, fires_on(token_sets(1))), identity))
    assert found.statistics == {}
    assert {v.null_reason for v in found.values} == {f"{type(identity).__name__} has no dictionary"}


def two_domains(tmp_path: Path, documents: int = 40) -> StageContext:
    """Even words in one domain, odd words in the other; latents 0 to 3 fire on even ones, 4 to 7 on odd ones."""
    from latentbench.activations.tokens import evaluation_tokens

    sets = torch.stack([torch.arange(4 + (i >= 4) + 2 * i, VOCABULARY, 16)[:5] for i in range(8)])
    lab = lab_of(tmp_path, 8, fires_on(sets))
    tokenizer = lab.tokenizer()
    texts = {
        name: [" ".join(w for w in text.split() if int(w[1:]) % 2 == odd) for text in random_texts(documents, seed=odd)]
        for odd, name in enumerate(("even", "odd"))
    }
    made = {name: evaluation_tokens(part, tokenizer, context=CONTEXT) for name, part in texts.items()}
    experiment: Any = SimpleNamespace(dataset=SimpleNamespace(eval=dict.fromkeys(made)), token_rule=EVERY_TOKEN)
    return replace(lab, experiment=experiment, tokens=made.__getitem__)


def test_domains_with_other_words_are_told_apart(tmp_path: Path) -> None:
    study = SparseProbing(k=(1, 4))
    found = study.run(two_domains(tmp_path))
    numbers = values(study, found)
    accuracy = numbers["sparse_probing.accuracy", "which_domain", 4]
    assert accuracy.value == 1
    assert numbers["sparse_probing.accuracy", "which_domain", 1].value == pytest.approx(1, abs=0.25)
    assert accuracy.n == len(found.statistics["which_domain"]["sparse_probing.weight"]) < 80, "half is held out"
    assert numbers["sparse_probing.residual_accuracy", "which_domain", None].value == 1


def test_the_held_out_documents_do_not_depend_on_the_sae(tmp_path: Path) -> None:
    first = SparseProbing(k=(1,)).run(two_domains(tmp_path)).statistics["which_domain"]
    lab = two_domains(tmp_path)
    model, keys = tiny_language_model()
    other = with_sae(replace(lab, model=lambda: model), RuleSAE(4, fires_at_random(4, 0.3), keys))
    second = SparseProbing(k=(1,)).run(other).statistics["which_domain"]
    np.testing.assert_array_equal(first["sparse_probing.weight"], second["sparse_probing.weight"])
    np.testing.assert_array_equal(first["sparse_probing.correct_residual"], second["sparse_probing.correct_residual"])


def test_too_few_documents_or_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="too few documents"):
        SparseProbing().run(two_domains(tmp_path, documents=4))
    one: Any = SimpleNamespace(dataset=SimpleNamespace(eval={"lab": None}), token_rule=EVERY_TOKEN)
    assert "two or more" in SparseProbing().problems_in(one, Roots(tmp_path))[0]


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def spelling_model(words_per_letter: int = 24, signal: float = 6.0) -> tuple[LanguageModel, Tensor, list[str]]:
    """A model in whose embeddings the first letter is an axis of its own: model, embeddings, words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        first + LETTERS[i] + LETTERS[(3 * i + k) % 26]
        for k, first in enumerate(LETTERS)
        for i in range(words_per_letter)
    ]
    names = ["<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(names), hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        keys = torch.cat([torch.zeros(len(names), 26), torch.randn(len(names), 38)], 1)
    keys[torch.arange(3, len(names)), torch.arange(len(words)) // words_per_letter] = signal
    model.model.embed_tokens.weight.data = keys.clone()
    return LanguageModel(model, fast, torch.device("cpu")), keys, words


class SpellingSAE(RuleSAE):
    """Latent ℓ < 26 fires on words with letter ℓ, except where `absorbed`; latents from 26 on, one per word, fire there."""

    def __init__(self, keys: Tensor, words: int, absorbed: Tensor) -> None:
        letter = torch.arange(words) // (words // 26)
        latents = torch.cat([torch.eye(26)[letter] * ~absorbed[:, None], torch.eye(words) * absorbed[:, None]], 1)
        table = torch.cat([torch.zeros(3, latents.shape[1]), latents])
        super().__init__(26 + words, lambda tokens, noise: table[tokens], keys)
        self._rows = torch.cat([6 * torch.eye(64)[:26], keys[3:]])

    def decoder_rows(self) -> Tensor:
        return self._rows


def spelling_lab(tmp_path: Path, share: float) -> StageContext:
    model, keys, words = spelling_model()
    absorbed = torch.rand(len(words), generator=torch.Generator().manual_seed(0)) < share
    lab = lab_of(tmp_path, 1, fires_on(token_sets(1)))
    return replace(lab, model=lambda: model, saes=lambda: {SITE: SpellingSAE(keys, len(words), absorbed)})


def test_a_dictionary_of_letters_absorbs_nothing(tmp_path: Path) -> None:
    study = Absorption()
    found = study.run(spelling_lab(tmp_path, 0.0))
    numbers = values(study, found)
    assert numbers["absorption.fraction", "first_letter", None].value == 0
    assert numbers["absorption.full", "first_letter", None].value == 0
    assert numbers["absorption.splits", "first_letter", None].value == 1
    assert len(found.details["f1"]) == 26


def test_words_with_latents_of_their_own_are_found(tmp_path: Path) -> None:
    """A quarter of the words is absorbed entirely, so both numbers are the share of these among the held-out words."""
    study = Absorption(split_gain=0.5)
    found = study.run(spelling_lab(tmp_path, 0.25))
    statistics = found.statistics["first_letter"]
    assert statistics["absorption.words"].sum() > 150
    assert statistics["absorption.fraction"].mean() == pytest.approx(0.25, abs=0.08)
    np.testing.assert_array_equal(statistics["absorption.fraction"], statistics["absorption.full"])


def test_words_are_read_and_probes_are_fitted_once_for_all_saes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Content] = {}

    def shared(kind: str, payload: Any, make: Callable[[], Content]) -> Content:
        key = digest(kind, payload)
        if key not in kept:
            content = make()
            (folder := tmp_path / key).mkdir()
            write_content(folder, content.tensors, content.meta)
            kept[key] = Content(*read_content(folder))
        return kept[key]

    labs = [replace(spelling_lab(tmp_path, share), shared=shared) for share in (0.25, 0.5)]
    alone = [Absorption(split_gain=0.5).run(spelling_lab(tmp_path, share)) for share in (0.25, 0.5)]
    fits: list[int] = []
    monkeypatch.setattr(first_letter, "letters_of", lambda words, made=letters_of: (fits.append(1), made(words))[1])
    found = [Absorption(split_gain=0.5).run(lab) for lab in labs]
    assert len(fits) == 1
    assert len(kept) == 2
    labs[0] = replace(labs[0], model=lambda: pytest.fail("the model is not needed"))
    found.append(Absorption(split_gain=0.5, min_f1=0.5).run(labs[0]))
    for one, other in zip(found, [*alone, alone[0]], strict=True):
        assert one.details == other.details
        for name, values in other.statistics["first_letter"].items():
            np.testing.assert_array_equal(one.statistics["first_letter"][name], values)
    Absorption(prefix="A word:").run(labs[1])
    assert len(kept) == 4


def test_a_model_that_cannot_spell_is_refused(tmp_path: Path) -> None:
    model, _, words = spelling_model(signal=0.0)
    lab = replace(spelling_lab(tmp_path, 0.0), model=lambda: model)
    found = Absorption().run(lab)
    assert found.statistics == {}
    assert [v.value for v in found.values] == [None, None]
    assert "fewer than 20" in str(found.values[0].null_reason)
    assert f"of {len(words)} single-token words" in found.warnings[0]
    found = Absorption().run(lab_of(tmp_path, 1, fires_on(token_sets(1))))
    assert "of 0 single-token words, 0 first letters" in str(found.values[0].null_reason)


def test_words_of_a_vocabulary() -> None:
    def vocabulary(*tokens: str) -> Any:
        return SimpleNamespace(get_vocab=lambda: {token: i for i, token in enumerate(tokens)})

    marked = vocabulary("Ġapple", "ĠApple", "pear", "Ġ12", "Ġa", "Ġnaïve", "▁fig")
    assert vocabulary_words(marked, 9) == {"apple": 0, "fig": 6}
    assert vocabulary_words(vocabulary("plum", "<s>", "x1", "Kiwi"), 9) == {"kiwi": 3, "plum": 0}
    many = vocabulary(*(a + b + "o" for a in LETTERS for b in LETTERS))
    assert len(vocabulary_words(many, 100)) == 100
    assert vocabulary_words(many, 50).items() <= vocabulary_words(many, 100).items()


def test_options_are_read_without_torch() -> None:
    modules = ", ".join(f"latentbench.latents.{name}" for name in ("firing", "decoder", "absorption", "sparse_probing"))
    code = f"import sys, {modules}, latentbench.cli.reports; print([m for m in ('torch', 'numpy', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def survey_of(firing: list[int]) -> Survey:
    empty: Any = None
    return Survey(100, torch.tensor(firing), *([empty] * 8))


def test_a_page_shows_sampled_latents_and_an_even_choice_of_the_others() -> None:
    firing = [0, *range(1, 101)]
    sampled = {7: LatentDetail(latent=7, density=0.1, max_activation=1.0)}
    shown = chosen({"lab": survey_of(firing)}, sampled, 11)
    assert len(shown) == 11
    assert shown == sorted(shown)
    assert 7 in shown
    assert 0 not in shown, "it never fires"
    assert np.diff([latent for latent in shown if latent != 7]).max() <= 11, "evenly over densities"
    assert chosen({"lab": survey_of(firing)}, sampled, 1000) == list(range(1, 101))
    assert chosen({}, sampled, 5) == [7]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, 0.123), (2.0, 2), (123456.0, 123000.0), (None, None), (float("nan"), None), (0.0, 0)],
)
def test_numbers_are_short(value: float | None, shown: float | None) -> None:
    assert short(value) == shown
