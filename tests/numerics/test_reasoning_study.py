"""Both studies of steering in a lab: what they measure, against plain computations on the pocket model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench.core.progress import unwatched
from latentbench.core.protocols import LanguageModel
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Untouched
from latentbench.interventions.vectors import SteeringVectors
from latentbench.reasoning.accuracy import ReasoningAccuracy
from latentbench.steering.capability_cost import CapabilityCost
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Findings
from latentbench_adapters.pocket.adapter import PocketModel, PocketText

pytestmark = pytest.mark.usefixtures("one_thread")

ROOTS = Roots(Path())
LEAD = " To find out, go step by step."


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return PocketModel().load(ROOTS, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokens(lm: LanguageModel) -> EvalTokens:
    texts = PocketText(adapter="pocket", domain="general", split="eval").texts(ROOTS)
    return evaluation_tokens(texts, lm.tokenizer, context=48, documents=14)


@pytest.fixture
def vectors() -> SteeringVectors:
    return SteeringVectors({3: torch.randn(128, generator=torch.Generator().manual_seed(1))})


@pytest.fixture
def lab(lm: LanguageModel, tokens: EvalTokens, tmp_path: Path) -> Callable[[Any], StageContext]:
    """A lab whose subject is the given one; what labs share is counted."""
    shared: dict[str, Content] = {}
    experiment: Any = SimpleNamespace(model=PocketModel(), dataset=SimpleNamespace(eval={"general": None}))

    def share(kind: str, payload: Any, make: Callable[[], Content]) -> Content:
        key = kind + canonical(payload)
        if key not in shared:
            shared[key] = make()
        return shared[key]

    def make(subject: Any) -> StageContext:
        return StageContext(
            experiment=experiment,
            key="0",
            roots=ROOTS,
            device=lm.device,
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
            model=lambda: lm,
            tokenizer=lambda: lm.tokenizer,
            saes=dict,
            subject=lambda: subject,
            tokens=lambda domain: tokens,
            shared=share,
            progress=unwatched,
        )

    make.shared = shared  # type: ignore[attr-defined]
    return make


def study(**fields: Any) -> ReasoningAccuracy:
    return ReasoningAccuracy(**{"task": "pocket_problems", "limit": 20, **fields})


def numbers(asked: Any, found: Findings) -> dict[str, float]:
    (statistics,) = found.statistics.values()
    return {
        e.id.partition(".")[2] + "".join(f"@{e.params['scale']}" for _ in range("scale" in e.params)): float(
            e.formula(*(statistics[name].sum() for name in e.inputs))
        )
        for e in asked.numbers()
    }


# -- reasoning_accuracy ---------------------------------------------------------------------------------------------


def test_a_prefix_that_leads_shows_its_gain(lab: Callable[[Intervention], StageContext]) -> None:
    asked = study()
    found = asked.run(lab(Untouched(LEAD)))
    seen = numbers(asked, found)
    assert seen["accuracy"] >= 0.9 > 0.5 > seen["base"]
    assert seen["gain"] == pytest.approx(seen["accuracy"] - seen["base"])
    assert seen["mean_length"] > 3 * seen["base_mean_length"]
    (p,) = found.values
    assert (p.id, p.n) == ("reasoning_accuracy.gain_p", 20)
    assert p.value is not None
    assert p.value < 1e-4
    assert found.details["gained"] - found.details["lost"] == round(20 * seen["gain"])


def test_the_base_is_made_once_for_all_cells(lab: Any, vectors: SteeringVectors) -> None:
    asked = study(samples=2, temperature=1.0, limit=6, max_new_tokens=24)
    subjects: list[Intervention] = [VectorInjection(vectors, 2.0), Untouched(LEAD), Untouched()]
    made = [asked.run(lab(subject)) for subject in subjects]
    assert len(lab.shared) == 1
    bases = [found.statistics["pocket_problems"]["reasoning_accuracy.base_correct"] for found in made]
    assert all(np.array_equal(bases[0], base) for base in bases)
    asked.model_copy(update={"temperature": 0.5}).run(lab(Untouched()))
    assert len(lab.shared) == 2  # never compared with a base at another temperature


def test_doing_nothing_gains_exactly_nothing(lab: Any, vectors: SteeringVectors) -> None:
    asked = study(samples=2, temperature=1.0, limit=8, max_new_tokens=24)
    for subject in (Untouched(), VectorInjection(vectors, 0.0)):
        found = asked.run(lab(subject))
        statistics = found.statistics["pocket_problems"]
        for name in ("correct", "tokens", "unformatted", "truncated", "solved"):
            ours, base = statistics[f"reasoning_accuracy.{name}"], statistics[f"reasoning_accuracy.base_{name}"]
            assert np.array_equal(ours, base)
        assert found.values[0].value == 1.0
        assert statistics["reasoning_accuracy.answers"].tolist() == [2.0] * 8


def test_what_the_report_shows(lab: Any) -> None:
    found = study(examples=5, limit=10).run(lab(Untouched(LEAD)))
    examples = found.details["examples"]
    assert len(examples) == 5
    first = examples[0]
    assert first["steered"]["correct"] > first["base"]["correct"]  # one that was gained comes first
    assert first["answer"] in first["steered"]["text"]
    assert found.details["lm_eval"]["steered"]["pocket_problems/exact_match,last-number"] > 0.8
    receipt = found.details["receipt"]
    assert (receipt["calls"], receipt["first_position"]) == (0, None)  # a prefix has no hooks


def test_too_few_problems_have_no_p_value(lab: Any) -> None:
    (p,) = study(limit=3).run(lab(Untouched(LEAD))).values
    assert p.value is None
    assert p.null_reason == "not testable with n = 3 problems"


def test_a_metric_the_task_does_not_have_is_refused(lab: Any) -> None:
    with pytest.raises(InvalidInput, match="no metric 'f1'"):
        study(scored_by="f1", limit=2).run(lab(Untouched()))


def test_only_an_intervention_can_be_evaluated(lab: Any) -> None:
    with pytest.raises(InvalidInput, match="steering"):
        study().run(lab("no intervention"))


REAL = Path(__file__).parents[3] / "shared/real/gsm8k/test.jsonl"
GSM8K = """
task: gsm8k_local
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer.split('### ')[-1].rstrip()}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 12}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "#### (-?[0-9.,]+)"}, {function: take_first}]}
  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "[0-9]+", group_select: -1}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [","]}]
num_fewshot: 0
"""


@pytest.mark.skipif(not REAL.is_file(), reason="needs the GSM8K files")
def test_gsm8k_is_read_from_local_files(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "gsm8k.yaml").write_text(GSM8K % REAL)
    asked = study(task="gsm8k.yaml", limit=4)
    with pytest.raises(RefusedFile, match="outside the project"):
        asked.identity(lab(Untouched()).experiment, Roots(tmp_path))
    allowed = Roots(tmp_path, (REAL.parent,))
    found = asked.run(_with_roots(lab(Untouched()), allowed))
    assert len(found.statistics["gsm8k"]["reasoning_accuracy.correct"]) == 4
    assert {key.split("/")[1] for key in found.details["lm_eval"]["base"]} == {
        "exact_match,strict",
        "exact_match,flexible-extract",
    }
    assert found.details["examples"][0]["prompt"].startswith("Question: Janet")
    assert list((tmp_path / "cache/datasets").iterdir())  # and nothing in the user's home


def _with_roots(made: StageContext, roots: Roots) -> StageContext:
    from dataclasses import replace

    return replace(made, roots=roots)


# -- capability_cost ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _costs(lm: LanguageModel, tokens: EvalTokens, bias: torch.Tensor, layer: int) -> tuple[float, float]:
    """CE increase and KL, document by document in float64, with a bias instead of hooks."""
    module: Any = lm.model.model.layers[layer].mlp.down_proj
    rises, divergences, predictions = 0.0, 0.0, 0
    for ids, length in zip(tokens.ids.long(), tokens.lengths.tolist(), strict=True):
        row = ids[None, :length]
        clean = torch.log_softmax(lm.model(row).logits[0, :-1].double(), -1)
        module.bias = torch.nn.Parameter(bias, requires_grad=False)
        steered = torch.log_softmax(lm.model(row).logits[0, :-1].double(), -1)
        module.bias = None
        targets = row[0, 1:, None]
        rises += float((clean - steered).gather(-1, targets).sum())
        divergences += float((clean.exp() * (clean - steered)).sum())
        predictions += length - 1
    return rises / predictions, divergences / predictions


def test_the_cost_is_that_of_a_bias_at_every_scale(
    lab: Any, lm: LanguageModel, tokens: EvalTokens, vectors: SteeringVectors
) -> None:
    asked = CapabilityCost(scales=(0.0, 0.2, 1.0))
    found = asked.run(lab(VectorInjection(vectors, 0.5)))
    seen = numbers(asked, found)
    for name, scale in (("", 0.5), ("@0.2", 0.2), ("@1.0", 1.0)):
        rise, divergence = _costs(lm, tokens, scale * vectors.vectors[3], 3)
        assert seen[f"ce_increase{name}"] == pytest.approx(rise, rel=1e-4)
        assert seen[f"kl{name}"] == pytest.approx(divergence, rel=1e-4)
    assert seen["ce_increase@0.0"] == seen["kl@0.0"] == 0
    assert [point["scale"] for point in found.details["curve"]["general"]] == [0.0, 0.2, 1.0]
    assert found.details["curve"]["general"][2]["kl"] == pytest.approx(seen["kl@1.0"])
    assert len(found.statistics["general"]["capability_cost.kl"]) == 14


@pytest.mark.parametrize(("scope", "same"), [("generated", True), ("prompt", False)])
def test_a_text_counts_as_generated(lab: Any, vectors: SteeringVectors, scope: Any, same: bool) -> None:
    asked = CapabilityCost()
    everywhere = numbers(asked, asked.run(lab(VectorInjection(vectors, 0.5))))["kl"]
    found = asked.run(lab(VectorInjection(vectors, 0.5, scope)))
    assert numbers(asked, found)["kl"] == (everywhere if same else 0.0)
    assert ["changed no token" in text for text in found.warnings] == ([] if same else [True])
    assert (found.details["receipt"]["steered"] > 0) == same


def test_what_has_no_scale_cannot_be_swept(lab: Any) -> None:
    assert numbers(CapabilityCost(), CapabilityCost().run(lab(Untouched())))["kl"] == 0
    with pytest.raises(InvalidInput, match="leave `scales` out"):
        CapabilityCost(scales=(1.0,)).run(lab(Untouched()))
    assert "prefix" in CapabilityCost().run(lab(Untouched(LEAD))).warnings[0]
