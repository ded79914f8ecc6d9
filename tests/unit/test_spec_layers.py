"""Layers counted from the end: another way of writing the same place, with the same keys and the same record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.core.errors import SpecError
from latentbench.core.sites import block_number
from latentbench.plan.stages import cell_key, stage_keys, stages_of
from latentbench.spec.cells import Cell
from latentbench.spec.project import load_specs
from tests.support.project import Workbench


def cell(bench: Workbench, **changes: Any) -> Cell:
    bench.spec(**changes)
    (spec,) = load_specs(bench.project, ["mine"])
    return spec.cells[0]


def keys(bench: Workbench, made: Cell) -> dict[str, str]:
    stages = stages_of(made, bench.project.roots)
    return {**stage_keys(stages), "cell": cell_key(made, stages)}


@given(st.integers(1, 200), st.integers(-250, 250))
def test_a_number_means_the_block_that_it_picks_from_a_list(blocks: int, layer: int) -> None:
    numbers = list(range(blocks))
    try:
        expected: int | None = numbers[layer]
    except IndexError:
        expected = None
    assert block_number(layer, blocks) == expected


@pytest.mark.parametrize(
    ("behind", "before"),
    [
        (-1, 1),
        (-2, 0),
        ("-1.mlp_out", "1.mlp_out"),
        ("-2.resid_pre", "0.resid_pre"),
        ({"index": -1, "point": "attn_out"}, "1.attn_out"),
    ],
    ids=str,
)
def test_a_layer_counted_from_the_end_is_the_same_experiment(bench: Workbench, behind: Any, before: Any) -> None:
    one, other = cell(bench, layer=behind), cell(bench, layer=before)
    assert one.experiment.plain() == other.experiment.plain()
    assert keys(bench, one) == keys(bench, other)


def test_layers_of_a_flow_may_be_counted_from_the_end(bench: Workbench) -> None:
    shape: dict[str, Any] = {"layer": None, "flow": {}, "metrics": ["flow_matching"]}
    one, other = (cell(bench, **shape, layers=layers) for layers in ([0, "-1.mlp_out", -1], [0, "1.mlp_out", 1]))
    assert one.experiment.plain() == other.experiment.plain()
    assert keys(bench, one) == keys(bench, other)


def test_one_block_named_in_two_ways_stands_there_twice(bench: Workbench, command: Any) -> None:
    bench.spec(layer=None, flow={}, metrics=["flow_matching"], layers=[0, 1, -1])
    done = command("validate", "mine")
    assert "layers[2]: 1.resid_post stands here twice" in done.err + done.out


@pytest.mark.parametrize("layer", [-3, "-3.mlp_out", {"index": -999}])
def test_a_layer_before_the_first_is_refused_where_it_stands(bench: Workbench, layer: Any) -> None:
    with pytest.raises(SpecError, match=r"specs/mine.yaml:\d+:\d+: layer.*: the model has 2 decoder blocks, 0 to 1"):
        cell(bench, layer=layer)


def test_where_the_models_depth_is_not_known_the_number_must_be_written(bench: Workbench) -> None:
    with pytest.raises(SpecError, match=r"layer: how many blocks the model has is not known here.*write its number"):
        cell(bench, layer=-1, model={"adapter": "transformers", "id": "nobody/has-this"})


def test_what_is_wrong_with_the_model_is_said_at_the_model(bench: Workbench) -> None:
    with pytest.raises(SpecError, match=r"model: \./absent is not a model folder"):
        cell(bench, layer=-1, model__id="./absent")


def test_the_record_of_a_run_has_the_number_of_the_block(bench: Workbench, command: Any) -> None:
    bench.spec(layer=-1, sae={"variant": "mean"})
    assert command("run", "mine").code == 0
    (record,) = bench.records().values()
    assert record.resolved["layer"] == {"index": 1, "point": "resid_post"}
    bench.spec(layer=1, sae={"variant": "mean"})
    assert "0 to run, 1 re-used" in command("plan", "mine").out
