"""`persistence` as a study: what it compares with, what it refuses, and what its key holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.execute.cell_record import numbers_of
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.metrics.propagation import Persistence
from latentbench.mechanism.passages import continuations, trace
from latentbench.mechanism.propagation import pairwise_cosines
from latentbench.metrics.value import MetricValue
from latentbench.study.context import StageContext
from latentbench.study.study import Findings
from tests.support.steering import LAYERS, WIDTH, WordProblems, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

TAG = {"hub": "owner/model", "revision": "a"}


def drawn(*layers: int, seed: int = 1) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVectors({layer: torch.randn(WIDTH, generator=generator) for layer in layers}, TAG)


def steered(folder: Path, *layers: int) -> StageContext:
    model: Any = SimpleNamespace(identity=lambda roots: {**TAG, "dtype": "float64"})
    made = lab(language_model("llama"), folder, model=model)
    return replace(made, subject=lambda: VectorInjection(drawn(*layers)))


def study(**options: Any) -> Persistence:
    section = {"problems_from": {"adapter": "pocket", "split": "train"}, "prompts": 3, "new_tokens": 4, **options}
    return Persistence.model_validate(section).model_copy(update={"problems_from": WordProblems()})


def values(metric: Persistence, found: Findings) -> dict[str, MetricValue]:
    item: Any = SimpleNamespace(cell=SimpleNamespace(experiment=SimpleNamespace(shared_metrics=[], studies=[metric])))
    item.cell.experiment.metrics = [metric]
    numbers = numbers_of(item, {}, {metric.label: found})
    assert len(numbers) == len({number.id for number in numbers}) == 2
    return {number.id.partition(".")[2]: number for number in numbers}


def test_a_vector_is_never_compared_with_itself(tmp_path: Path) -> None:
    metric = study()
    found = metric.run(steered(tmp_path, 0))
    numbers = values(metric, found)
    assert numbers["diff_diff"].value is not None
    assert 0 < numbers["diff_diff"].value < 0.9999
    assert numbers["diff_vector"].value is None
    assert "compare_with" in str(numbers["diff_vector"].null_reason)
    assert found.details["diff_vector"] == [None] * (LAYERS - 1)


def mean_change(metric: Persistence, made: StageContext, way: VectorInjection, writing: Any) -> torch.Tensor:
    """[d] float64: what `way` makes of the final residual stream over what is written under `writing`."""
    lm = made.model()
    text = continuations(lm, writing, [p.prompt for p in metric.asked(made)], metric.new_tokens)
    last = Site(index=LAYERS - 1)
    after, before = (trace(lm, text, intervention, [last]).states[last] for intervention in (way, None))
    return (after - before)[text.predicting].double().mean(0)


@pytest.mark.parametrize("texts", ["same_texts", "own_texts"])
def test_the_matrix_compares_what_single_vectors_do_in_the_end(texts: str, tmp_path: Path) -> None:
    drawn(1, seed=5).save(tmp_path / "v.safetensors")
    metric, made = study(matrix=texts, compare_with="v.safetensors"), steered(tmp_path, 0, 2)
    found = metric.run(made)
    assert found.details["matrix"]["vectors"] == ["layer 0", "layer 2", "named, layer 1"]
    ways = [VectorInjection(vectors) for vectors in (drawn(0, 2).only(0), drawn(0, 2).only(2), drawn(1, seed=5))]
    together = made.subject()
    changes = [mean_change(metric, made, way, together if texts == "same_texts" else way) for way in ways]
    expected = [[float(torch.cosine_similarity(a, b, dim=0)) for b in changes] for a in changes]
    torch.testing.assert_close(
        torch.tensor(found.details["matrix"]["cosines"]), torch.tensor(expected), atol=2e-6, rtol=0
    )
    (value,) = found.values
    pairs = [expected[0][1], expected[0][2], expected[1][2]]
    assert (value.id, value.n) == ("persistence.final_cosine", 3)
    assert value.value == pytest.approx(sum(pairs) / 3, abs=1e-6)


def test_one_vector_has_none_to_be_compared_with(tmp_path: Path) -> None:
    (value,) = study(matrix="same_texts").run(steered(tmp_path, 1)).values
    assert value.value is None
    assert value.null_reason == "there are no two vectors that change the final residual stream"


def test_a_vector_without_an_effect_has_no_direction() -> None:
    cosines = pairwise_cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]))
    torch.testing.assert_close(cosines[0, 2], torch.tensor(0.6, dtype=torch.float64))
    assert cosines[1].isnan().all()


def test_the_matrix_is_written_only_where_it_is_asked_for() -> None:
    section = {"problems_from": {"adapter": "pocket", "split": "train"}}
    assert "matrix" not in Persistence.model_validate(section).plain()
    assert Persistence.model_validate({**section, "matrix": "own_texts"}).plain()["matrix"] == "own_texts"


def test_a_vector_of_the_last_block_has_nothing_behind_it(tmp_path: Path) -> None:
    metric = study()
    numbers = values(metric, metric.run(steered(tmp_path, LAYERS - 1)))
    assert {number.value for number in numbers.values()} == {None}
    assert {number.null_reason for number in numbers.values()} == {"no block comes after the first steered one"}


def test_later_blocks_are_compared_with_vectors_of_files(tmp_path: Path) -> None:
    drawn(0, 1, seed=2).save(tmp_path / "one.safetensors")
    drawn(2, seed=3).save(tmp_path / "two.safetensors")
    metric = study(compare_with=["one.safetensors", "two.safetensors"])
    found = metric.run(steered(tmp_path, 0))
    cosine = values(metric, found)["diff_vector"].value
    assert cosine is not None
    assert 0 < abs(cosine) < 0.9
    assert found.details["vectors"] == "named"
    assert None not in found.details["diff_vector"]
    assert found.details["layers"] == [1, 2]


def test_vectors_of_one_cell_are_compared_with_its_own_and_say_so(tmp_path: Path) -> None:
    metric = study()
    found = metric.run(steered(tmp_path, 0, 2))
    number = values(metric, found)["diff_vector"]
    assert number.params == {"vectors": "own"}
    assert number.value is not None
    assert abs(number.value) < 0.9, "what is added at block 2 itself does not count"
    assert found.details["diff_vector"][0] is None


def test_files_that_cannot_be_compared_with_are_refused(tmp_path: Path) -> None:
    made = steered(tmp_path, 0)
    experiment: Any = SimpleNamespace(steering=None)
    with pytest.raises(InvalidInput, match="outside the project"):
        study(compare_with="../v.safetensors").problems_in(experiment, made.roots)
    with pytest.raises(NotAvailable, match="there is no file"):
        study(compare_with="none.safetensors").problems_in(experiment, made.roots)
    replace(drawn(2), model={**TAG, "revision": "b"}).save(tmp_path / "other.safetensors")
    with pytest.raises(RefusedFile, match="another model or revision"):
        study(compare_with="other.safetensors").run(made)
    SteeringVectors({1: torch.ones(WIDTH + 1)}, TAG).save(tmp_path / "wide.safetensors")
    with pytest.raises(InvalidInput, match="another model"):
        study(compare_with="wide.safetensors").run(made)
    drawn(1, 2).save(tmp_path / "a.safetensors")
    with pytest.raises(InvalidInput, match=r"vectors of layers \[1, 2\]"):
        study(compare_with=["a.safetensors", "a.safetensors"]).run(made)


def test_the_key_holds_the_content_of_the_files_and_not_their_names(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        drawn(1, seed=seed).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    experiment: Any = None

    def keys(**options: Any) -> tuple[Any, Any]:
        section = {"problems_from": {"adapter": "pocket", "split": "train"}, **options}
        metric = Persistence.model_validate(section)
        return metric.determining(), metric.identity(experiment, Roots(tmp_path))

    assert keys(compare_with="a.safetensors") == keys(compare_with=["copy.safetensors"])
    assert keys(compare_with="a.safetensors") != keys(compare_with="b.safetensors")
    assert keys(compare_with="a.safetensors") != keys()
