"""Specs that ship declare what the papers' claims need, and share what can be shared."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from latentbench.core.protocols import DatasetAdapter
from latentbench.core.texts import ByText
from latentbench.plan.stages import stages_of
from latentbench.sae.cost import variant_cost
from latentbench.spec.cells import Cell, SpecFile
from latentbench.spec.checks import check
from latentbench.spec.project import find_project, load_specs
from latentbench.steering.method import parts_of
from latentbench.steering.optimised import ReinforcedMethod
from latentbench_adapters.mixtures import MixedDataset

BOOST = [
    "papers/sae_boost/pocket",
    "papers/sae_boost/qwen2.5-7b-russian",
    "papers/sae_boost/qwen2.5-7b-russian-curves",
    "papers/sae_boost/smollm2-135m",
    "papers/sae_boost/gemma-3-270m",
]
DOMAINS = "papers/sae_boost/qwen2.5-7b-domains"


@lru_cache(maxsize=1)
def shipped() -> dict[str, SpecFile]:
    return {spec.origin.name: spec for spec in load_specs(find_project(), [])}


def cases(name: str) -> dict[str, Cell]:
    """The cells of a spec's first seed, by label."""
    return {cell.label: cell for cell in reversed(shipped()[name].cells)}


def sae_key(cell: Cell) -> str:
    (sae,) = stages_of(cell, find_project().roots).saes
    return sae.stage.key


def stands_on(cell: Cell) -> set[str]:
    """Keys of all that the cell's SAE starts from, itself included."""
    (sae,) = stages_of(cell, find_project().roots).saes
    return {one.stage.key for _, one in sae.levels()}


@pytest.mark.parametrize("name", [*BOOST, DOMAINS])
def test_a_residual_sae_is_read_against_the_very_base_it_stands_on(name: str) -> None:
    found = cases(name)
    assert "cost" in {metric.metric for metric in found["base"].experiment.metrics}
    on_base = [cell for cell in found.values() if getattr(cell.experiment.sae, "base_sections", ())]
    assert on_base
    for cell in on_base:
        assert sae_key(found["base"]) in stands_on(cell), cell.title


@pytest.mark.parametrize("name", BOOST)
def test_whatever_adds_active_latents_has_a_base_with_as_many(name: str) -> None:
    found = cases(name)
    most: Any = found["base"].experiment.sae
    controls = {cell.experiment.sae.k for label, cell in found.items() if label.startswith("base-")}  # type: ignore[union-attr]
    saes: list[Any] = [cell.experiment.sae for cell in found.values()]
    added = {sae.k for sae in saes if sae.variant == "boosted"} | {
        sae.extra_k for sae in saes if sae.variant == "extended"
    }
    assert controls == {most.k + extra for extra in added}


def test_an_ensemble_is_made_of_the_saes_that_are_measured_alone() -> None:
    found = cases(DOMAINS)
    together = stands_on(found["both"])
    for part in ("russian", "german"):
        assert sae_key(found[part]) in together
    assert sae_key(found["russian"]) == sae_key(cases(BOOST[1])["boosted"]) == sae_key(cases(BOOST[2])["k5"])


@pytest.mark.parametrize("name", ["papers/kronsae/qwen2.5-1.5b", "papers/hierarchical_topk/gemma-2-2b"])
def test_latents_are_those_of_the_saes_that_are_measured(name: str) -> None:
    measured = {sae_key(cell) for cell in cases(name).values()}
    others = [cell for label, cell in cases(f"{name}-latents").items() if label not in ("random-decoder", "untrained")]
    assert len(others) >= 3
    assert {sae_key(cell) for cell in others} <= measured


@pytest.mark.parametrize(
    ("name", "reference", "d_model"),
    [("papers/kronsae/pythia-70m", "topk", 512), ("papers/kronsae/qwen2.5-1.5b", "topk-32k", 1536)],
)
def test_kronsae_is_given_the_flops_of_topk_without_the_model_at_hand(name: str, reference: str, d_model: int) -> None:
    found = cases(name)
    other: Any = found[reference].experiment
    equal = [cell for label, cell in found.items() if label.endswith("-equal-flops")]
    assert equal
    for cell in equal:
        experiment: Any = cell.experiment
        ours, theirs = (variant_cost(one.sae, d_model).per_token for one in (experiment, other))
        assert experiment.dataset.train.tokens == round(other.dataset.train.tokens * theirs / ours)
        assert experiment.dataset.train.tokens > other.dataset.train.tokens


@pytest.mark.parametrize("name", ["papers/kronsae/pythia-70m", "papers/kronsae/qwen2.5-1.5b", "models/pythia-70m/topk"])
def test_quoted_numbers_are_reported_in_the_estimators_they_may_be(name: str) -> None:
    for cell in shipped()[name].cells:
        (metric,) = (metric for metric in cell.experiment.metrics if metric.metric == "explained_variance")
        ids = {estimator.id for estimator in metric.numbers()}
        assert ids >= {f"explained_variance.{kind}" for kind in ("centred", "residual_variance", "token_ratio")}


def test_methods_of_one_shipped_spec_write_as_many_answers_at_a_time() -> None:
    """A case that changes the method inherits nothing, and once lost the batch that keys and values must fit into."""
    for spec in shipped().values():
        parts = [part for cell in spec.cells for part in parts_of(cell.experiment.steering)]
        trained = [part for part in parts if isinstance(part, ReinforcedMethod)]
        assert len({(part.rollout_batch, part.micro_batch, part.stop) for part in trained}) <= 1, spec.origin.name


def parts_read(texts: DatasetAdapter) -> list[DatasetAdapter]:
    """The texts of a mixture, or the texts themselves."""
    return [part.texts for part in texts.parts] if isinstance(texts, MixedDataset) else [texts]


TEXTS = ("general", "medicine", "news", "python_code", "reviews")


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_packages_are_split_by_text_and_need_nothing_to_be_validated(name: str, tmp_path: Path) -> None:
    shutil.copytree(find_project().specs / "_base", tmp_path / "specs/_base")
    text = f"""extends: [_base/pocket.yaml, _base/texts/{TEXTS[0]}.yaml, _base/texts/{name}.yaml]
sae: {{variant: topk, width: 32, k: 4}}
dataset: {{train: {{tokens: 1000}}}}
"""
    (tmp_path / "specs/mine.yaml").write_text(text)
    project = find_project(start=tmp_path)
    (spec,) = load_specs(project, ["mine"])
    data = spec.cells[0].experiment.dataset
    assert data.train is not None
    same = {"by_text": None, "documents": None, "tokens": None}
    for train, evaluation in zip(parts_read(data.train), parts_read(data.eval[name]), strict=True):
        assert (train.by_text, evaluation.by_text) == (ByText(part="train"), ByText(part="eval"))
        assert train.model_copy(update=same) == evaluation.model_copy(update=same)
    assert check(spec, project.roots) == []
