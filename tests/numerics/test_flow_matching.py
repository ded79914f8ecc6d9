"""Matching against dense float64 references: nearest rows, assignment, correlation, folding, and composed maps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from latentbench.bench.flow import peak_memory
from latentbench.core.errors import InvalidInput
from latentbench.flow import matching
from latentbench.flow.activity import Activity
from latentbench.flow.maps import LatentMap
from latentbench.flow.matching import NOBODY, assigned, correlated, nearest, pair_cosines
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import Codes
from tests.support.flow import RESIDUAL, LinearTied, TiedSae, maps_of, random_rows, unit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("by_cosine", [True, False])
@pytest.mark.parametrize(("source", "target"), [(50, 33), (7, 64), (64, 64)])
def test_both_directions_equal_the_dense_product(
    k: int, by_cosine: bool, source: int, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "SOURCE_ROWS", 16)
    monkeypatch.setattr(matching, "TARGET_ROWS", 10)
    a, b = random_rows(source), random_rows(target, seed=1)
    forward, backward = nearest(a, b, k, unit=by_cosine)
    dense = unit(a) @ unit(b).T if by_cosine else a @ b.T
    for found, wanted in ((forward, dense), (backward, dense.T)):
        top = wanted.topk(k, 1)
        assert torch.equal(found.indices, top.indices)
        torch.testing.assert_close(found.scores, top.values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair_cosines(a, b, forward.indices), (unit(a) @ unit(b).T).gather(1, forward.indices))


def test_ties_go_to_the_earlier_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "TARGET_ROWS", 2)
    rows = torch.eye(3)[[0, 1, 0, 1, 0]]
    forward, backward = nearest(rows, rows, 1)
    assert forward.indices[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert backward.indices[:, 0].tolist() == [0, 1, 0, 1, 0]


def test_fewer_latents_than_matches_leave_gaps() -> None:
    forward, _ = nearest(random_rows(4), random_rows(2, seed=1), 3)
    assert (forward.indices[:, 2] == NOBODY).all()
    assert torch.isneginf(forward.scores[:, 2]).all()
    assert (pair_cosines(random_rows(4), random_rows(2, seed=1), forward.indices)[:, 2] == 0).all()


def test_a_row_of_zeros_matches_nothing() -> None:
    rows = random_rows(6)
    rows[2] = 0
    maps = maps_of({RESIDUAL[0]: TiedSae(random_rows(5, seed=1).float()), RESIDUAL[1]: TiedSae(rows.float())})
    back = maps.maps[RESIDUAL[1], RESIDUAL[0]]
    assert back.cosines[2].tolist() == [0]
    assert not back.active()[2].any()
    assert torch.isfinite(back.cosines).all()


def test_half_precision_rows_are_compared_in_float32() -> None:
    a, b = random_rows(40).bfloat16(), random_rows(40, seed=1).bfloat16()
    forward, _ = nearest(a, b, 1)
    assert forward.scores.dtype == torch.float32
    assert torch.equal(forward.indices[:, 0], (unit(a.double()) @ unit(b.double()).T).argmax(1))


@pytest.mark.parametrize("by_cosine", [True, False])
def test_the_full_assignment_is_the_optimum(by_cosine: bool) -> None:
    a, b = random_rows(30), random_rows(30, seed=1)
    forward, backward = assigned(a, b, unit=by_cosine, exact_width=30, neighbours=1)
    similarity = (unit(a) @ unit(b).T if by_cosine else a @ b.T).numpy()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    assert forward.indices[:, 0].tolist() == columns.tolist()
    assert backward.indices[forward.indices[:, 0], 0].tolist() == rows.tolist()
    np.testing.assert_allclose(forward.scores[:, 0], similarity[rows, columns], rtol=1e-6)


def test_the_sparse_assignment_finds_the_optimum_when_neighbours_suffice() -> None:
    a = random_rows(120, 16)
    b = unit(a[torch.randperm(120, generator=torch.Generator().manual_seed(3))]) + 0.1 * random_rows(120, 16, seed=2)
    exact, _ = assigned(a, b, unit=True, exact_width=200, neighbours=1)
    sparse, back = assigned(a, b, unit=True, exact_width=10, neighbours=30)
    assert torch.equal(exact.indices, sparse.indices)
    assert sparse.indices[back.indices[:, 0], 0].tolist() == list(range(120))


@pytest.mark.parametrize("neighbours", [1, 3, 20])
def test_the_sparse_assignment_is_always_one_to_one_and_no_better_than_the_optimum(neighbours: int) -> None:
    a, b = random_rows(90, 6), random_rows(90, 6, seed=1)
    sparse, _ = assigned(a, b, unit=True, exact_width=10, neighbours=neighbours)
    exact, _ = assigned(a, b, unit=True, exact_width=90, neighbours=1)
    assert sorted(sparse.indices[:, 0].tolist()) == list(range(90))
    cosines = (unit(a) @ unit(b).T).gather(1, sparse.indices)
    torch.testing.assert_close(cosines.float(), sparse.scores)
    assert float(sparse.scores.sum()) <= float(exact.scores.sum()) + 1e-4


def test_the_wider_side_of_an_assignment_keeps_latents_without() -> None:
    for exact_width in (100, 4):
        forward, backward = assigned(
            random_rows(20), random_rows(12, seed=1), unit=True, exact_width=exact_width, neighbours=5
        )
        assert int((forward.indices == NOBODY).sum()) == 8
        assert int((backward.indices == NOBODY).sum()) == 0


def sparse_codes(tokens: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(tokens, width, generator=generator) * (torch.rand(tokens, width, generator=generator) < 0.2)
    dense[:, 3] = 0  # never fires
    dense[:, 4] = 1.5  # always the same
    return dense


def test_pearson_equals_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "TILE", 7 * 30)
    a, b = sparse_codes(300, 25, 0), sparse_codes(300, 18, 1)
    b[:, 0] = 2 * a[:, 9]
    sides = Activity(25), Activity(18)
    for part in torch.arange(300).split(70):
        for side, dense in zip(sides, (a, b), strict=True):
            side.add(Codes.from_dense(dense[part]))
    with np.errstate(all="ignore"):
        whole = np.nan_to_num(np.corrcoef(a.double().numpy().T, b.double().numpy().T)[:25, 25:])
    forward, backward = correlated(*sides, 2)
    for found, wanted in ((forward, whole), (backward, whole.T)):
        best = np.sort(wanted, 1)[:, ::-1][:, :2]
        np.testing.assert_allclose(found.scores.numpy(), best, atol=1e-12)
        chosen = np.take_along_axis(wanted, found.indices.numpy(), 1)
        np.testing.assert_allclose(chosen, best, atol=1e-12)
    assert (int(forward.indices[9, 0]), int(backward.indices[0, 0])) == (0, 9)
    assert forward.scores[3].tolist() == [0, 0]


def test_mean_activations_count_active_tokens_only() -> None:
    side = Activity(3)
    side.add(Codes.from_dense(torch.tensor([[1.0, 0, 0], [3, 0, 2]])))
    assert side.mean_active().tolist() == [2, 1, 2]


def test_folding_with_equal_thresholds_on_unit_rows_changes_nothing() -> None:
    layers = [unit(random_rows(30, seed=s)).float() for s in range(2)]
    folded = {RESIDUAL[i]: LinearTied(rows, 0.5) for i, rows in enumerate(layers)}
    plain, scaled = maps_of(folded), maps_of(folded, Flow(matching="folded"))
    assert torch.equal(plain.maps[RESIDUAL[1], RESIDUAL[0]].indices, scaled.maps[RESIDUAL[1], RESIDUAL[0]].indices)


def test_folding_weighs_latents_by_their_thresholds() -> None:
    rows = [unit(random_rows(20, seed=s)).float() for s in range(2)]
    theta = [torch.rand(20, generator=torch.Generator().manual_seed(s)) + 0.1 for s in range(2)]
    saes = {RESIDUAL[i]: LinearTied(rows[i], theta[i]) for i in range(2)}
    found = maps_of(saes, Flow(matching="folded")).maps[RESIDUAL[1], RESIDUAL[0]]
    products = (theta[1][:, None] * rows[1]) @ (theta[0][:, None] * rows[0]).T
    assert torch.equal(found.indices[:, 0], products.argmax(1))
    torch.testing.assert_close(found.cosines, (rows[1] @ rows[0].T).gather(1, found.indices))


def test_an_sae_without_positive_thresholds_cannot_be_folded_by_them() -> None:
    from latentbench.sae.options import GatedOptions, StandardOptions, TopKOptions

    kinds = (
        TopKOptions(width=16, k=2),
        StandardOptions(width=16),
        GatedOptions(width=16),
    )
    for options in kinds:
        saes = {site: options.build(8, torch.Generator().manual_seed(0)) for site in RESIDUAL[:2]}
        with pytest.raises(InvalidInput, match="no positive thresholds to fold"):
            maps_of(saes, Flow(matching="folded"))
    below = {
        site: LinearTied(unit(random_rows(9, seed=1)).float(), torch.linspace(-0.1, 1, 9)) for site in RESIDUAL[:2]
    }
    with pytest.raises(InvalidInput, match="no positive thresholds to fold"):
        maps_of(below, Flow(matching="folded"))


def test_the_encoder_operator_compares_decoder_rows_with_the_next_encoder() -> None:
    rows = [random_rows(15, seed=s).float() for s in range(2)]
    encoder = random_rows(15, seed=5).float()
    saes = {RESIDUAL[0]: LinearTied(rows[0]), RESIDUAL[1]: LinearTied(rows[1], encoder=encoder)}
    maps = maps_of(saes, Flow(matching="encoder"))
    similarity = unit(rows[0]) @ unit(encoder).T
    assert torch.equal(maps.maps[RESIDUAL[0], RESIDUAL[1]].indices[:, 0], similarity.argmax(1))
    assert torch.equal(maps.maps[RESIDUAL[1], RESIDUAL[0]].indices[:, 0], similarity.argmax(0))


def test_random_matches_come_from_the_nearest_and_repeat() -> None:
    saes = {site: TiedSae(unit(random_rows(60, seed=i)).float()) for i, site in enumerate(RESIDUAL[:2])}
    drawn, again = (maps_of(saes, Flow(matching="random", k=2)) for _ in range(2))
    top = maps_of(saes, Flow(k=5)).maps[RESIDUAL[1], RESIDUAL[0]].indices
    found = drawn.maps[RESIDUAL[1], RESIDUAL[0]].indices
    assert torch.equal(found, again.maps[RESIDUAL[1], RESIDUAL[0]].indices)
    assert (found[:, :, None] == top[:, None, :]).any(2).all()
    assert (found[:, 0] != found[:, 1]).all()
    shares = [(found[:, 0] == top[:, rank]).double().mean() for rank in range(5)]
    assert all(0.02 < share < 0.45 for share in shares)
    other = maps_of(saes, Flow(matching="random", k=2), key="1" * 64).maps[RESIDUAL[1], RESIDUAL[0]].indices
    assert not torch.equal(found, other)
    anyone = maps_of(saes, Flow(matching="random", candidates="all")).maps[RESIDUAL[1], RESIDUAL[0]]
    assert len(anyone.indices.unique()) > 20


def as_matrix(found: LatentMap) -> Tensor:
    matrix = torch.zeros(len(found.indices), found.width)
    rows = torch.arange(len(found.indices))[:, None].expand_as(found.indices)
    on = found.active()
    matrix[rows[on], found.indices[on]] = 1
    return matrix


def test_carried_codes_are_the_operator_and_compositions_its_product() -> None:
    saes = {site: TiedSae(unit(random_rows(12 + i, 10, seed=i)).float()) for i, site in enumerate(RESIDUAL[:4])}
    maps = maps_of(saes)
    z = sparse_codes(9, 12, 3)
    carried = maps.maps[RESIDUAL[0], RESIDUAL[1]].carry(Codes.from_dense(z)).dense(13)
    torch.testing.assert_close(carried, z @ as_matrix(maps.maps[RESIDUAL[0], RESIDUAL[1]]))
    for way in (RESIDUAL[:4], RESIDUAL[:4][::-1]):
        product = torch.eye(len(saes[way[0]].decoder_rows()))
        for step in pairwise(way):
            product = product @ as_matrix(maps.maps[step])
        composed = maps.composed(way[0], way[-1])
        codes = Codes.from_dense(sparse_codes(9, saes[way[0]].width, 4))
        reached = composed.carry(codes).dense(saes[way[-1]].width)
        torch.testing.assert_close(reached, codes.dense(saes[way[0]].width) @ product)
    with pytest.raises(InvalidInput, match="no path of maps"):
        maps.composed(RESIDUAL[0], RESIDUAL[4])


def test_of_many_paths_the_best_to_each_latent_are_kept() -> None:
    saes = {site: TiedSae(unit(random_rows(14, 4, seed=i)).float()) for i, site in enumerate(RESIDUAL[:3])}
    maps = maps_of(saes, Flow(k=3))
    one, two = maps.maps[RESIDUAL[0], RESIDUAL[1]], maps.maps[RESIDUAL[1], RESIDUAL[2]]
    composed = maps.composed(RESIDUAL[0], RESIDUAL[2])
    merged = 0
    for latent in range(14):
        paths: dict[int, float] = {}
        for middle, first in zip(one.indices[latent].tolist(), one.scores[latent].tolist(), strict=True):
            for last, second in zip(two.indices[middle].tolist(), two.scores[middle].tolist(), strict=True):
                if first > 0 and second > 0:
                    merged += last in paths
                    paths[last] = max(paths.get(last, -2), min(first, second))
        wanted = sorted(paths.values(), reverse=True)[:3]
        reached = [last for last in composed.indices[latent].tolist() if last != NOBODY]
        assert len(set(reached)) == len(reached) == len(wanted)
        assert composed.scores[latent][: len(wanted)].tolist() == wanted == [paths[last] for last in reached]
    assert merged > 10


def test_a_composed_path_is_as_good_as_its_weakest_step() -> None:
    saes = {site: TiedSae(unit(random_rows(12, 10, seed=i)).float()) for i, site in enumerate(RESIDUAL[:3])}
    maps = maps_of(saes)
    one, two = maps.maps[RESIDUAL[0], RESIDUAL[1]], maps.maps[RESIDUAL[1], RESIDUAL[2]]
    wanted = torch.minimum(one.cosines[:, 0], two.cosines[one.indices[:, 0], 0])
    torch.testing.assert_close(maps.composed(RESIDUAL[0], RESIDUAL[2]).best, wanted)


def test_scaled_codes_are_those_of_folded_saes() -> None:
    saes = {site: TiedSae(unit(random_rows(12, 10, seed=i)).float()) for i, site in enumerate(RESIDUAL[:2])}
    found = maps_of(saes).maps[RESIDUAL[0], RESIDUAL[1]]
    theta = [torch.rand(12, generator=torch.Generator().manual_seed(s)) + 0.5 for s in range(2)]
    z = sparse_codes(9, 12, 3)
    carried = found.carry(Codes.from_dense(z), (theta[0], theta[1])).dense(12)
    torch.testing.assert_close(carried, (z / theta[0]) @ as_matrix(found) * theta[1])


def test_matching_needs_no_more_memory_for_wider_dictionaries() -> None:
    d, wide = 64, 10_240
    tile = 4 * (matching.SOURCE_ROWS * matching.TARGET_ROWS + (matching.SOURCE_ROWS + matching.TARGET_ROWS) * d)
    results = 2 * wide * 12
    peak = peak_memory(wide, d, 1)
    assert 0 < peak < 2 * tile + 2 * results + (16 << 20)
    assert peak < wide**2 * 4 / 3  # of the whole matrix
