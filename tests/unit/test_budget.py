"""`training.budget`: as many tokens as another spec's operations buy; and the cost metric's formulas."""

from __future__ import annotations

import pytest

from latentbench.core.errors import SpecError
from latentbench.plan.stages import stages_of
from latentbench.reconstruction.sparsity_and_cost import ComputeCost
from latentbench.sae.cost import variant_cost
from latentbench.sae.options import KronOptions, TopKOptions
from latentbench.spec.project import load_specs
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.project import Workbench

KRON = {"variant": "kron", "width": 32, "m": 4, "n": 4, "k": 4}


def test_a_budget_buys_the_tokens_that_the_reference_pays_for(bench: Workbench) -> None:
    bench.spec("topk")
    bench.spec("kron", sae=KRON, dataset__train__tokens=None, training__budget={"flops_of": "topk.yaml"})
    (kron,) = load_specs(bench.project, ["kron"])
    experiment = kron.cells[0].experiment
    facts = experiment.model.facts(bench.project.roots)
    assert facts is not None
    d = facts.d_model
    topk_macs, kron_macs = d * 32 + 4 * d, d * 2 * (4 + 4) + 32 + 4 * d
    assert experiment.dataset.train is not None
    assert experiment.dataset.train.tokens == round(1024 * topk_macs / kron_macs)


def test_the_reference_is_counted_at_the_size_of_its_own_model(bench: Workbench) -> None:
    """An SAE of the pocket model (d = 128) against one of the tiny model (d = 16)."""
    bench.spec("topk", model={"adapter": "pocket"})
    bench.spec("kron", sae=KRON, dataset__train__tokens=None, training__budget={"flops_of": "topk.yaml"})
    (kron,) = load_specs(bench.project, ["kron"])
    facts = kron.cells[0].experiment.model.facts(bench.project.roots)
    pocket = PocketModel().facts(bench.project.roots)
    assert facts is not None
    assert facts.d_model != pocket.d_model
    costs = (variant_cost(TopKOptions(width=32, k=4), pocket.d_model), variant_cost(KronOptions(**KRON), facts.d_model))
    assert kron.cells[0].experiment.dataset.train is not None
    assert kron.cells[0].experiment.dataset.train.tokens == round(1024 * costs[0].per_token / costs[1].per_token)


def test_the_size_can_be_stated_where_the_model_is_not_here(bench: Workbench) -> None:
    elsewhere = {"adapter": "transformers", "id": "nobody/nothing", "revision": "c" * 40}
    bench.spec("topk", model=elsewhere)
    made: dict[str, object] = {"model": elsewhere, "sae": KRON, "dataset__train__tokens": None}
    bench.spec("kron", **made, training__budget={"flops_of": "topk.yaml", "d_model": 64})
    (kron,) = load_specs(bench.project, ["kron"])
    costs = (variant_cost(TopKOptions(width=32, k=4), 64), variant_cost(KronOptions(**KRON), 64))
    assert kron.cells[0].experiment.dataset.train is not None
    assert kron.cells[0].experiment.dataset.train.tokens == round(1024 * costs[0].per_token / costs[1].per_token)
    bench.spec("kron", **made, training__budget={"flops_of": "topk.yaml"})
    with pytest.raises(SpecError, match="its config is not cached; state it as `d_model`"):
        load_specs(bench.project, ["kron"])


def test_a_size_that_is_not_the_models_is_refused(bench: Workbench) -> None:
    bench.spec("topk")
    bench.spec("kron", sae=KRON, dataset__train__tokens=None, training__budget={"flops_of": "topk.yaml", "d_model": 17})
    with pytest.raises(SpecError, match="have 16 dimensions, not `d_model: 17`"):
        load_specs(bench.project, ["kron"])


def test_the_path_of_a_budget_is_in_no_key_but_its_tokens_are(bench: Workbench) -> None:
    bench.spec("topk")
    bench.spec("copy")
    keys = {}
    for name in ("topk", "copy"):
        bench.spec("kron", sae=KRON, dataset__train__tokens=None, training__budget={"flops_of": f"{name}.yaml"})
        (kron,) = load_specs(bench.project, ["kron"])
        keys[name] = stages_of(kron.cells[0], bench.project.roots).saes[0].stage.key
    assert keys["topk"] == keys["copy"]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("missing.yaml", "cannot be read"),
        ("many.yaml", "say which with `label`"),
        ("../../../x.yaml", "leaves the project"),
    ],
)
def test_a_budget_that_cannot_be_worked_out_is_refused_where_it_stands(
    bench: Workbench, reference: str, reason: str
) -> None:
    bench.spec("many", matrix={"sae.k": [2, 4]})
    bench.spec("kron", sae=KRON, dataset__train__tokens=None, training__budget={"flops_of": reference})
    with pytest.raises(SpecError, match=reason):
        load_specs(bench.project, ["kron"])


def test_costs_follow_the_formulas_of_the_paper() -> None:
    d, width, k = 1536, 32_768, 50
    topk = variant_cost(TopKOptions(width=width, k=k), d)
    kron = variant_cost(KronOptions(width=width, m=2, n=4, k=k), d)
    assert (topk.encoder, topk.decoder) == (d * width, d * k)
    assert (kron.encoder, kron.decoder) == (d * 4096 * 6 + width, d * k)
    assert kron.encoder / topk.encoder == pytest.approx(0.751, abs=5e-4)  # papers' table, d = 1536


def test_the_cost_metric_reports_parameters_and_operations() -> None:
    values = {v.id: v.value for v in ComputeCost().of_sae(TopKOptions(width=64, k=4), 16, 64, 3.5)}
    assert values == {"cost.parameters": 64 * 17 + 64 * 16 + 16, "cost.encoder": 1024, "cost.decoder": 64}
