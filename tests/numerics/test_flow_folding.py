"""Steering along a flow graph as the paper does it: layers counted from the model's first, folded rows, an opening of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.flow.activity import mean_active, texts_of
from latentbench.flow.graph import LatentNode, parse_node
from latentbench.flow.interventions import along, scheduled
from latentbench.flow.matching import decoder_rows
from latentbench.flow.options import Flow
from latentbench.flow.steering_method import FlowMethod
from latentbench.flow.steering_metric import FlowSteering
from latentbench.interventions.generation import prompt_ids
from latentbench.study.context import StageContext
from tests.support.flow import LinearTied, unit
from tests.support.flow_studies import R0, R1, R2, SITES, experiment, pocket, studying

pytestmark = pytest.mark.usefixtures("one_thread")

MATCHING = {"k": 2, "thresholds": {"chance": 1}, "domain": "general", "tokens": 200}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageContext]:
    with torch.no_grad():
        yield studying(pocket(), tmp_path_factory.mktemp("lab"))


def vectors_of(lab: StageContext, **fields: Any) -> tuple[dict[int, Tensor], dict[int, LatentNode]]:
    """What the method makes of one seed, and the latent of its path at each block."""
    method = FlowMethod.model_validate({"latents": ["1:3"], "matching": MATCHING, **fields})
    made = method.make(lab)
    nodes = map(parse_node, made.meta["paths"]["1.resid_post:3"])
    path = {node.site.index: node for node in nodes if node.site in (R0, R1, R2)}
    return {int(name.partition(".")[2]): tensor for name, tensor in made.tensors.items()}, path


def test_layers_are_counted_from_the_path_or_from_the_model() -> None:
    blocks = [2, 3, 6]
    found = scheduled("exponential", 3, -0.05, blocks, "model")
    assert found == {block: pytest.approx(3 * math.exp(-0.05 * block)) for block in blocks}
    for schedule in ("constant", "linear"):
        assert scheduled(schedule, 3, -0.05, blocks, "model") == scheduled(schedule, 3, -0.05, blocks)  # type: ignore[arg-type]
    # Two paths that begin at different blocks get the same strength where they meet.
    nodes = [LatentNode(Site(index=block), 0) for block in (1, 2)]
    atoms = dict.fromkeys(nodes, torch.ones(4))
    routes = [nodes, nodes[1:]]
    added = along(atoms, routes, "exponential", 1.0, alpha=-0.5, counted_from="model").vectors.vectors[2]
    torch.testing.assert_close(added, torch.full((4,), 2 * math.exp(-1.0)))


def test_the_vectors_of_a_flow_follow_the_papers_schedule(lab: StageContext) -> None:
    plain, path = vectors_of(lab)
    found, _ = vectors_of(lab, schedule="exponential", strength=2.0, alpha=-0.3, counted_from="model")
    assert found.keys() == plain.keys() == path.keys()
    assert len(found) > 1
    for block, vector in found.items():
        torch.testing.assert_close(vector, 2 * math.exp(-0.3 * block) * plain[block])
        assert float(plain[block].norm()) == pytest.approx(1.0)


def test_rows_are_folded_by_mean_activations(lab: StageContext) -> None:
    found, path = vectors_of(lab, fold="activation")
    means = mean_active(lab, texts_of(Flow.model_validate(MATCHING), lab), [node.site for node in path.values()])
    for block, node in path.items():
        row = decoder_rows(lab.saes()[node.site], node.site)[node.index]
        assert float(means[node.site][node.index]) != 1.0
        torch.testing.assert_close(found[block], row * means[node.site][node.index])


def test_rows_are_folded_by_thresholds(lab: StageContext) -> None:
    generator = torch.Generator().manual_seed(4)
    thetas = {site: 0.5 + torch.rand(48, generator=generator) for site in SITES}
    saes = {
        site: LinearTied(3 * unit(decoder_rows(sae, site).detach()), thetas[site]) for site, sae in lab.saes().items()
    }
    found, path = vectors_of(replace(lab, saes=lambda: saes), fold="threshold")
    assert len(found) > 1
    for block, node in path.items():
        torch.testing.assert_close(found[block], saes[node.site].rows[node.index] * thetas[node.site][node.index])
    with pytest.raises(InvalidInput, match="no positive thresholds to fold"):
        vectors_of(lab, fold="threshold")


def test_all_texts_can_begin_with_an_opening_of_ones_own(lab: StageContext) -> None:
    study = FlowSteering(
        target="chemistry", strengths=(2.0,), schedules=("single",), prompts=4, tokens=6, select=1, opening="Tom has"
    )
    found = study.run(lab)
    texts = found.details["settings"]["base"]["texts"]
    opened = lab.tokenizer().decode(prompt_ids(lab.model(), ["Tom has"])[0], skip_special_tokens=True)
    assert len(texts) == 4
    assert all(opened in text for text in texts)
    assert len(set(texts)) > 1, "every text is drawn with numbers of its own"
    assert {len(values) for values in found.statistics["general"].values()} == {4}
    without = study.model_copy(update={"opening": None}).run(lab)
    for name in ("base.loss", "single=2.loss", "predictions"):
        statistics = [one.statistics["general"][f"flow_steering.{name}"].tolist() for one in (found, without)]
        assert statistics[0] == statistics[1], "documents give the loss, whatever begins the texts"
    assert {number.params["opening"] for number in study.numbers()} == {"Tom has"}


def test_what_is_newer_is_written_only_where_it_is_said() -> None:
    method, study = FlowMethod(latents=("1:3",)), FlowSteering(target="chemistry")
    assert not {"fold", "counted_from"} & method.plain().keys()
    assert not {"opening", "counted_from"} & study.plain().keys()
    assert all(not {"opening", "counted_from"} & number.params.keys() for number in study.numbers())
    made, roots = experiment(), Roots(Path())
    asked = FlowMethod(latents=("1:3",), schedule="exponential", counted_from="model", fold="activation")
    assert {"fold": "activation", "counted_from": "model"}.items() <= asked.plain().items()
    assert "fold_on" not in method.identity(made, roots)
    for fields in ({"method": "flow", "latents": ["1:3"]}, {"target": "chemistry"}):
        kind: Any = FlowMethod if "latents" in fields else FlowSteering
        with pytest.raises(ValidationError, match=r"counted_from: only .*exponential"):
            kind.model_validate({**fields, "counted_from": "model"})


def test_folds_that_these_saes_and_texts_do_not_give_are_refused_before_anything_is_made() -> None:
    made, roots = experiment(), Roots(Path())
    assert "no positive thresholds to fold" in " ".join(
        FlowMethod(latents=("1:3",), fold="threshold").problems_in(made, roots)
    )
    nowhere = FlowMethod(latents=("1:3",), fold="activation", matching=Flow(domain="nowhere"))
    assert "no evaluation domain nowhere" in " ".join(nowhere.problems_in(made, roots))
