"""The flow studies against slow, plain references on the pocket model with SAEs of random directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.core.sites import Site
from latentbench.flow.activity import Activity
from latentbench.flow.deactivation_study import sampled
from latentbench.flow.interventions import TokenEdit
from latentbench.flow.maps import FlowMaps
from latentbench.flow.matching_study import top_tokens
from latentbench.flow.metrics import FlowAgreement, FlowDeactivation, FlowMatching, FlowTransition
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import Codes
from latentbench.study.context import StageContext
from tests.support.flow import maps_of
from tests.support.flow_studies import M1, R0, R1, R2, SITES, WIDTH, numbers, pocket, studying

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageContext]:
    with torch.no_grad():
        yield studying(pocket(), tmp_path_factory.mktemp("lab"))


def dense(lab: StageContext, domain: str) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
    """Hidden states and dense codes of ordinary tokens, document after document, and whose they are."""
    tokens, lm = lab.tokens(domain), lab.model()
    states: dict[Site, list[Tensor]] = {site: [] for site in SITES}
    owners = []
    for number, (row, length) in enumerate(zip(tokens.ids, tokens.lengths.tolist(), strict=True)):
        found = hidden_states(lm.model, SITES, row[None, :length].long())
        ordinary = ~torch.isin(row[:length], torch.tensor([0, 1], dtype=row.dtype))
        for site in SITES:
            states[site].append(found[site][0][ordinary])
        owners.append(torch.full((int(ordinary.sum()),), number))
    whole = {site: torch.cat(parts) for site, parts in states.items()}
    codes = {site: lab.saes()[site].encode(whole[site]).dense(WIDTH) for site in SITES}
    return whole, codes, torch.cat(owners)


def summed(owners: Tensor, values: Tensor, documents: int = 12) -> np.ndarray:
    return torch.zeros(documents, dtype=torch.float64).index_add_(0, owners, values.double()).numpy()


def test_agreement_equals_loops(lab: StageContext) -> None:
    study = FlowAgreement(minimum=3)
    found = study.run(lab)
    maps: FlowMaps = lab.subject()
    for domain in ("general", "chemistry"):
        _, codes, owners = dense(lab, domain)
        firings, residual, nowhere, chance, mlp = (torch.zeros(len(owners)).double() for _ in range(5))
        for target, before in ((R1, R0), (R2, R1)):
            z = codes[target] != 0
            matched = (codes[before] != 0)[:, maps.maps[target, before].indices].any(2) & z
            written = (codes[M1] != 0)[:, maps.maps[R1, M1].indices].any(2) & z if target == R1 else torch.zeros_like(z)
            rates = (codes[before] != 0).double().mean(0)[maps.maps[target, before].indices]
            firings += z.sum(1)
            residual += matched.sum(1)
            mlp += written.sum(1)
            nowhere += (z & ~matched & ~written).sum(1)
            chance += z.double() @ (1 - (1 - rates).prod(1))
        wanted = {"firings": firings, "residual": residual, "nowhere": nowhere, "residual_chance": chance, "mlp": mlp}
        assert set(found.statistics[domain]) == {f"flow_agreement.{name}" for name in wanted}
        for name, values in wanted.items():
            got = found.statistics[domain][f"flow_agreement.{name}"]
            np.testing.assert_allclose(got, summed(owners, values), rtol=1e-9, err_msg=name)
    values = numbers(study, found)
    lift = values["general", "flow_agreement.residual_lift", "[]"]
    assert lift is not None
    assert lift > 1.2  # directions are shared, so matches must fire together more often than by chance
    assert values["general", "flow_agreement.attention", "[]"] is None
    assert found.details["tests"]["general"]
    assert all(0 <= test["p"] <= 1 for test in found.details["tests"]["general"])


def test_top_tokens_are_the_strongest_different_ones() -> None:
    side = Activity(3)
    side.add(Codes.from_dense(torch.tensor([[1.0, 0, 0], [3, 0, 0], [2, 5, 0], [4, 1, 0]])))
    top = top_tokens(side.matrix(), np.array([7, 8, 7, 9]))
    assert top.ids[:, :4].tolist() == [[9, 8, 7, -1], [7, 9, -1, -1], [-1, -1, -1, -1]]
    assert top.values[0, :3].tolist() == [4, 3, 2]
    other = Activity(3)
    other.add(Codes.from_dense(torch.tensor([[9.0, 0, 1], [2.5, 0, 0]])))
    joined = top.joined(top_tokens(other.matrix(), np.array([8, 5])))
    assert joined.ids[0, :4].tolist() == [8, 9, 5, 7]
    assert joined.ids[2, :2].tolist() == [8, -1]


def test_transition_equals_the_operator_in_float64(lab: StageContext) -> None:
    study = FlowTransition(scales=("norm", "activation"))
    found = study.run(lab)
    maps: FlowMaps = lab.subject()
    states, codes, owners = dense(lab, "general")
    saes = lab.saes()
    wanted: dict[str, np.ndarray] = {}
    for before, after in ((R0, R1), (R1, R2)):
        h = states[after].double()
        variance = (h - h.mean(0)).square().sum(1)
        operator = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        chosen = maps.maps[before, after]
        for latent in range(WIDTH):
            for match, on in zip(chosen.indices[latent].tolist(), chosen.active()[latent].tolist(), strict=True):
                operator[latent, match] += float(on)
        rows = {site: lab.saes()[site].decoder_rows().double() for site in (before, after)}  # type: ignore[union-attr]
        z = codes[before].double()
        # Where there are no training texts, maps may be fitted on the first domain, so are mean activations.
        mean = {s: codes[s].double().sum(0) / (codes[s] != 0).sum(0).clamp_min(1) for s in (before, after)}
        mean = {s: torch.where(m > 0, m, 1.0) for s, m in mean.items()}
        errors = {
            "variance": variance,
            "own": (h - codes[after].double() @ rows[after]).square().sum(1),
            "copied": (h - z @ rows[before]).square().sum(1),
            "encoded": (h - saes[after](saes[before].decode(Codes.from_dense(z.float()))).double()).square().sum(1),
            "carried_norm": (h - z @ operator @ rows[after]).square().sum(1),
            "carried_activation": (h - ((z / mean[before]) @ operator * mean[after]) @ rows[after]).square().sum(1),
        }
        for name, values in errors.items():
            wanted[name] = wanted.get(name, 0) + summed(owners, values / variance.sum())
    for name, values in wanted.items():
        np.testing.assert_allclose(found.statistics["general"][f"flow_transition.{name}.1"], values, rtol=1e-4)
    told = numbers(study, found)
    layers = found.details["layers"]["general"]
    own = told["general", "flow_transition.own", "[]"]
    assert own == pytest.approx(np.mean([layer["own"] for layer in layers]), abs=1e-6)


def test_transition_over_two_steps_carries_through_both_maps(lab: StageContext) -> None:
    found = FlowTransition(steps=(1, 2)).run(lab)
    maps: FlowMaps = lab.subject()
    states, codes, owners = dense(lab, "general")
    h = states[R2].double()
    variance = (h - h.mean(0)).square().sum(1)
    rows = lab.saes()[R2].decoder_rows()
    assert rows is not None
    composed = maps.composed(R0, R2)
    assert composed.indices.shape == (WIDTH, 2)
    operator = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for latent in range(WIDTH):
        operator[latent, composed.indices[latent][composed.active()[latent]]] = 1
    error = (h - codes[R0].double() @ operator @ rows.double()).square().sum(1) / variance.sum()
    statistics = found.statistics["general"]
    np.testing.assert_allclose(statistics["flow_transition.carried_norm.2"], summed(owners, error), rtol=1e-4)
    assert {name for name in statistics if name.endswith(".1")} == {
        name[:-1] + "1" for name in statistics if name.endswith(".2")
    }


def test_matching_counts_the_latents_that_fire(lab: StageContext) -> None:
    found = FlowMatching().run(lab)
    maps: FlowMaps = lab.subject()
    _, codes, _ = dense(lab, "chemistry")
    scores = [maps.maps[a, b].cosines.amax(1)[(codes[a] != 0).any(0)] for a, b in ((R1, R0), (R2, R1))]
    whole = torch.cat(scores).double()
    got = found.statistics["chemistry"]
    assert len(got["flow_matching.latents"]) == len(whole)
    np.testing.assert_allclose(np.sort(got["flow_matching.cosine"]), whole.sort().values)
    assert got["flow_matching.matched"].sum() == int((whole >= 0.5).sum())
    labels = [got[f"flow_matching.{name}"] for name in ("translated", "processed", "newborn", "unexplained")]
    assert (np.sum(labels, axis=0) == 1).all()
    few = FlowMatching(latents=10).run(lab).statistics["chemistry"]
    assert len(few["flow_matching.cosine"]) == 10


def test_deactivation_equals_one_case_at_a_time(lab: StageContext) -> None:
    study = FlowDeactivation(
        documents=4, tokens=2, latents=5, parts=("all", "residual", "modules"), layers=(1,), loss=True, exhaustive=1
    )
    found = study.run(lab)
    maps: FlowMaps = lab.subject()
    tokens, lm, saes = lab.tokens("general"), lab.model(), lab.saes()
    generator = torch.Generator().manual_seed(lab.seed("deactivation", "general", str(R1)))
    context = int(tokens.lengths[:4].max())
    real = torch.arange(context) < tokens.lengths[:4, None]
    ordinary = real & ~torch.isin(tokens.ids[:4, :context], torch.tensor([0, 1], dtype=tokens.ids.dtype))
    places = list(zip(*(x.tolist() for x in sampled(ordinary, 2, generator)), strict=True))
    sums = {name: np.zeros(4) for name in ("cases", *(f"{who}.{n}" for who in ("all", "residual", "modules") for n in
            ("tried", "deactivated", "change", "loss_before", "loss_after")))}  # fmt: skip
    parts = {"all": [R0, M1], "residual": [R0], "modules": [M1]}
    for row, column in places:
        ids = tokens.ids[row : row + 1, : int(tokens.lengths[row])].long()
        clean = hidden_states(lm.model, SITES, ids)
        z = {site: saes[site].encode(clean[site][0, column : column + 1]) for site in SITES}
        strongest = z[R1].truncated(5)
        for latent, before in zip(strongest.indices[0].tolist(), strongest.values[0].tolist(), strict=True):
            if before <= 0:
                continue
            sums["cases"][row] += 1
            for who, sites in parts.items():
                removed = {site: removal(z[site].dense(WIDTH)[0], maps, site, latent, saes) for site in sites}
                if not any(on for _, on in removed.values()):
                    continue
                edit = TokenEdit({site: delta for site, (delta, _) in removed.items()}, torch.tensor([column]))
                with edit.applied(lm):
                    changed = hidden_states(lm.model, [R1], ids)[R1]
                    logits = lm.model(input_ids=ids).logits
                after = float(saes[R1].encode(changed[0, column : column + 1]).dense(WIDTH)[0, latent])
                sums[f"{who}.tried"][row] += 1
                sums[f"{who}.deactivated"][row] += after == 0
                sums[f"{who}.change"][row] += 1 - after / before
                sums[f"{who}.loss_after"][row] += tail_loss(logits, ids, column)
                sums[f"{who}.loss_before"][row] += tail_loss(lm.model(input_ids=ids).logits, ids, column)
    assert sums["all.tried"].sum() > 5
    for name, wanted in sums.items():
        got = found.statistics["general"][f"flow_deactivation.{name}"]
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3, err_msg=name)
    searched = found.statistics["general"]
    assert searched["flow_deactivation.exhaustive.all.tried"].sum() == 4
    layer = found.details["layers"]["general"][0]
    assert layer["receipt"]["steered"] > 0
    assert all(value is not None for value in numbers(study, found).values())


def removal(z: Tensor, maps: FlowMaps, site: Site, latent: int, saes: Any) -> tuple[Tensor, bool]:
    """What removing a latent's predecessors at a site adds [1, d], and whether any is active."""
    matches = maps.maps[R1, site].indices[latent]
    rows = saes[site].decoder_rows()
    return -(z[matches] @ rows[matches])[None], bool((z[matches] != 0).any())


def tail_loss(logits: Tensor, ids: Tensor, column: int) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, column:-1], ids[0, column + 1 :], reduction="sum"))


def test_exhaustive_search_does_at_least_as_well_as_the_match_in_the_same_cases(lab: StageContext) -> None:
    study = FlowDeactivation(documents=6, tokens=2, latents=4, layers=(1, 2), parts=("residual", "all"), exhaustive=2)
    found = study.run(lab_of_k1(lab))
    sums = {name.removeprefix("flow_deactivation."): v for name, v in found.statistics["general"].items()}
    assert sums["matched.residual.tried"].sum() > 4
    for part in study.parts:
        np.testing.assert_array_equal(sums[f"exhaustive.{part}.tried"], sums[f"matched.{part}.tried"])
        assert (sums[f"matched.{part}.tried"] <= sums[f"{part}.tried"]).all()
    for name in ("change", "deactivated"):
        assert (sums[f"exhaustive.residual.{name}"] >= sums[f"matched.residual.{name}"] - 1e-4).all()
    told = numbers(study, found)
    params = "[('part', 'residual'), ('r', 0.0)]"
    matched, best = (told["general", f"flow_deactivation.{who}_change", params] for who in ("matched", "exhaustive"))
    assert matched is not None
    assert best is not None
    assert best >= matched - 1e-6


def test_cases_that_are_all_searched_are_those_that_are_tried(lab: StageContext) -> None:
    study = FlowDeactivation(documents=4, tokens=1, latents=3, layers=(2,), exhaustive=1000)
    sums = study.run(lab).statistics["general"]
    for name in ("tried", "deactivated", "change"):
        np.testing.assert_allclose(
            sums[f"flow_deactivation.matched.all.{name}"], sums[f"flow_deactivation.all.{name}"], rtol=1e-6
        )


def lab_of_k1(lab: StageContext) -> StageContext:
    maps = maps_of(lab.saes(), Flow.model_validate({"thresholds": {"chance": 1}}))
    return replace(lab, subject=lambda: maps)
