"""Autointerp scores of latents whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from latentbench.autointerp.metric import Autointerp
from latentbench.autointerp.scores import AutointerpDetails
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, Reply
from latentbench.metrics.values import metric_values
from latentbench.study.study import Findings
from tests.support.labs import fires_at_random, fires_on, lab_of, token_sets

pytestmark = pytest.mark.usefixtures("one_thread")

LATENTS = 24


class NoneJudge(Judge):
    """Explains everything the same way and never says yes."""

    adapter: str = "none"
    yes: int = 0

    def identity(self, roots: Roots) -> Any:
        return "none"

    def chat(self, requests: Sequence[Sequence[Mapping[str, str]]], roots: Roots, cache: Path) -> Iterator[Reply]:
        for messages in requests:
            questions = messages[1]["content"].count("\n") - 1
            explains = '"explanation"' in messages[0]["content"]
            yield Reply('{"explanation": "x"}' if explains else f'{{"answers": {[self.yes] * questions}}}')


def numbers(metric: Autointerp, findings: Findings, domain: str = "lab") -> dict[str, float | None]:
    found = metric_values([metric], {domain: findings.statistics[domain]})
    return {v.id + (f"@{v.params['budget']}" if "budget" in v.params else ""): v.value for v in found}


def scored(tmp_path: Path, rules: Any, width: int = LATENTS, **options: Any) -> dict[str, float | None]:
    metric = Autointerp(**{"latents": width, **options})
    return numbers(metric, metric.run(lab_of(tmp_path, width, rules)))


@pytest.mark.parametrize("size", [1, 4])
def test_latents_that_fire_on_known_tokens_are_explained(tmp_path: Path, size: int) -> None:
    found = scored(tmp_path, fires_on(token_sets(LATENTS, size)))
    for number in ("score", "detection", "fuzzing", "coverage", "detection_auroc", "fuzzing_auroc"):
        assert (found[f"autointerp.{number}"] or 0) >= 0.95, number


@pytest.mark.parametrize("density", [0.02, 0.1])
def test_a_latent_that_fires_whatever_the_text_is_at_chance(tmp_path: Path, density: float) -> None:
    found = scored(tmp_path, fires_at_random(60, density), width=60)
    assert found["autointerp.score"] == pytest.approx(0.5, abs=0.03)


def test_shuffled_labels_are_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents of the first test, but the truth of the questions is permuted within each class of question."""
    import numpy as np

    import latentbench.autointerp.study as run

    generator, build = np.random.default_rng(0), run.build_questions

    def shuffled(*arguments: Any) -> Any:
        built = build(*arguments)
        for name in ("detection", "fuzzing"):
            items = getattr(built, name)
            truths = generator.permutation([item.truth for item in items]).tolist()
            relabelled = tuple(type(i)(i.window, truth, i.marks) for i, truth in zip(items, truths, strict=True))
            object.__setattr__(built, name, relabelled)
        return built

    monkeypatch.setattr(run, "build_questions", shuffled)
    found = scored(tmp_path, fires_on(token_sets(60)), width=60)
    assert found["autointerp.score"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("yes", [0, 1])
def test_a_judge_that_always_answers_the_same_scores_exactly_one_half(tmp_path: Path, yes: int) -> None:
    judge = NoneJudge(yes=yes)
    metric = Autointerp.model_construct(**{**dict(Autointerp(latents=12)), "judge": judge})
    found = numbers(metric, metric.run(lab_of(tmp_path, 12, fires_on(token_sets(12)))))
    assert found["autointerp.detection"] == found["autointerp.fuzzing"] == found["autointerp.score"] == 0.5
    assert found["autointerp.above_chance"] == 0
    assert found["autointerp.judge_failures"] == 0
    assert "autointerp.detection_auroc" not in found


def test_a_latent_that_fires_almost_everywhere_is_excluded_and_counted(tmp_path: Path) -> None:
    metric = Autointerp(latents=4)
    findings = metric.run(lab_of(tmp_path, 4, fires_at_random(4, 0.9)))
    details = AutointerpDetails.model_validate(findings.details)
    assert sum(details.budgets[0].excluded.values()) == 4
    assert all("almost everywhere" in str(latent.excluded) for latent in details.budgets[0].latents)
    found = numbers(metric, findings)
    assert found["autointerp.score"] is None
    assert found["autointerp.coverage"] == 0
    assert "0% of the alive latents" in findings.warnings[0]


def test_the_score_follows_what_the_sae_does_at_each_budget(tmp_path: Path) -> None:
    """Latents that fire on tokens strongly and on anything weakly: with one active latent only the rule is left."""
    rule, anything = fires_on(token_sets(16, 1)), fires_at_random(16, 0.05)

    def rules(tokens: Tensor, noise: Tensor) -> Tensor:
        activations = 10 * rule(tokens, noise) + anything(tokens, noise)
        activations[:, 0] = 5  # stronger than anything, weaker than the rule
        return activations

    metric = Autointerp(latents=16, budgets=(1,))
    findings = metric.run(lab_of(tmp_path, 16, rules))
    found = numbers(metric, findings)
    assert found["autointerp.score@1"] > found["autointerp.score"] + 0.1  # type: ignore[operator]
    assert len({len(values) for values in findings.statistics["lab"].values()}) == 1
