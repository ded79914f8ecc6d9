"""Planted truth: permutations, births, deaths, splits and writes that matching must find and name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentbench.core.sites import Site
from latentbench.flow.labels import LABELS, origins
from latentbench.flow.maps import FlowMaps, chance_cosine
from latentbench.flow.options import Flow
from tests.support.flow import RESIDUAL, LinearTied, Planted, TiedSae, maps_of, planted, random_rows, unit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["cosine", "encoder", "folded"])
def test_planted_latents_are_recovered(kind: str, seed: int) -> None:
    truth = planted(seed)
    saes = {site: LinearTied(rows, 0.5) for site, rows in truth.rows.items()}
    maps = maps_of(saes, Flow.model_validate({"matching": kind}))
    found = torch.cat([recovered(maps, truth, site) for site in RESIDUAL[1:]])
    assert found.double().mean() >= 0.99


def recovered(maps: FlowMaps, truth: Planted, site: Site) -> Tensor:
    """Whether each planted predecessor is the one found."""
    before = Site(index=site.index - 1)
    known = truth.origin[site] >= 0
    return maps.maps[site, before].indices[known, 0] == truth.origin[site][known]


def test_modules_of_the_first_layer_lead_to_its_residual_stream() -> None:
    sites = [Site.model_validate(site) for site in ({"index": 0, "point": "mlp_out"}, {"index": 0}, {"index": 1})]
    rows = unit(random_rows(12, 10)).float()
    saes = {
        site: TiedSae(rows[torch.randperm(12, generator=torch.Generator().manual_seed(i))])
        for i, site in enumerate(sites)
    }
    maps = maps_of(saes)
    assert torch.equal(saes[sites[0]].rows[maps.maps[sites[1], sites[0]].indices[:, 0]], saes[sites[1]].rows)
    assert origins(maps, sites[1]) is None


@pytest.mark.parametrize("exact_width", [1000, 100])
def test_a_planted_permutation_is_recovered_by_assignment(exact_width: int) -> None:
    truth = planted()
    chosen = Flow(matching="permutation", exact_width=exact_width)
    maps = maps_of(truth.saes(), chosen)
    # Of the two halves of a split only one can be matched; everything else that is there must be.
    for site in RESIDUAL[1:]:
        origin = truth.origin[site]
        once = (origin >= 0) & (torch.bincount(origin.clamp_min(0), minlength=400)[origin.clamp_min(0)] == 1)
        assert recovered(maps, truth, site)[once[origin >= 0]].double().mean() >= 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_births_splits_and_writes_get_their_labels(seed: int) -> None:
    truth = planted(seed)
    maps = maps_of(truth.saes())
    right = []
    for site in RESIDUAL[1:]:
        kept, written = truth.origin[site] >= 0, truth.written[site] >= 0
        wanted = torch.where(kept, torch.where(written, 1, 0), torch.where(written, 2, 3))
        found = origins(maps, site)
        assert found is not None
        assert set(wanted.tolist()) == set(range(len(LABELS)))
        right.append(found.labels == wanted)
    assert torch.cat(right).double().mean() >= 0.99


def test_both_halves_of_a_split_have_one_predecessor() -> None:
    truth = planted()
    maps = maps_of(truth.saes())
    back = maps.maps[RESIDUAL[1], RESIDUAL[0]].indices[:, 0]
    counts = torch.bincount(truth.origin[RESIDUAL[1]].clamp_min(0), minlength=400)
    twice = [latent for latent in (counts == 2).nonzero()[:, 0].tolist() if latent]
    assert len(twice) >= 7
    assert all(int((back == latent).sum()) == 2 for latent in twice)


def test_dead_latents_have_no_successor() -> None:
    truth = planted()
    maps = maps_of(truth.saes())
    found = maps.maps[RESIDUAL[0], RESIDUAL[1]].best >= 0.5
    lives = torch.isin(torch.arange(400), truth.origin[RESIDUAL[1]])
    assert (found == lives).double().mean() >= 0.99


def test_chance_is_what_random_directions_give() -> None:
    other = unit(random_rows(200, 40, seed=1))
    best = (unit(random_rows(3000, 40)) @ other.T).amax(1)
    for level in (0.1, 0.5, 0.99):
        assert float((best <= chance_cosine(200, 40, level)).double().mean()) == pytest.approx(level, abs=0.03)
