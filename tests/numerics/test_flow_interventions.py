"""Rescaling, single-token edits and steering along graphs: what they do to hidden states, and their receipts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.massive import EVERY_LENGTH, NormLimit, OrdinaryTokens, lengths
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import TokenRule
from latentbench.flow.activity import TokenRows, batches, codes_at, firing, ordinary_tokens
from latentbench.flow.effects import RerunCases, RerunRows, entry_before, rerun
from latentbench.flow.graph import LatentNode
from latentbench.flow.interventions import (
    Rescaling,
    TokenEdit,
    along,
    editing,
    graph_nodes,
    only,
    removal,
    route,
    scheduled,
)
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.flow import TiedSae, lab_of, maps_of, unit
from tests.support.memory import little_memory
from tests.support.passes import MASSIVE, MIDDLE, MLP, TOKENS, ToySAE, planted

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = [Site(index=0), Site(index=1, point="attn_out"), Site(index=1, point="mlp_out"), Site(index=1), Site(index=2)]
D_MODEL, LATENTS = 128, 64


@pytest.fixture(scope="module")
def lm() -> Iterator[LanguageModel]:
    with torch.no_grad():
        yield PocketModel().load(Roots(Path()), torch.device("cpu"))


@pytest.fixture(scope="module")
def saes() -> dict[Site, SparseAutoencoder]:
    generator = torch.Generator().manual_seed(0)
    return {site: TiedSae(unit(torch.randn(LATENTS, D_MODEL, generator=generator))) for site in SITES}


def ids(rows: int = 3, length: int = 9) -> Tensor:
    return torch.randint(5, 2000, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("r", [0.0, -2.0])
def test_rescaling_multiplies_what_the_latents_write(
    lm: LanguageModel, saes: dict[Site, SparseAutoencoder], site: Site, r: float
) -> None:
    latents = torch.tensor([3, 10, 11, 40])
    with torch.no_grad():
        before = hidden_states(lm.model, [site], ids())[site]
        with Rescaling(saes, {site: latents}, r).applied(lm) as receipt:
            after = hidden_states(lm.model, [site], ids())[site]
    z = saes[site].encode(before.reshape(-1, D_MODEL)).dense(LATENTS)
    rows = saes[site].decoder_rows()
    assert rows is not None
    wanted = (r - 1) * z[:, latents] @ rows[latents]
    torch.testing.assert_close((after - before).reshape(-1, D_MODEL), wanted, rtol=1e-4, atol=1e-4)
    assert (receipt.passes, receipt.calls, receipt.tokens) == (1, 1, 27)
    assert receipt.steered == int((wanted.abs().sum(1) > 0).sum())
    assert receipt.relative_size > 0


def test_rescaling_by_one_changes_nothing(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    _, before = hidden_states_and_logits(lm.model, [], ids())
    with Rescaling(saes, {site: torch.arange(LATENTS) for site in SITES}, 1.0).applied(lm) as receipt:
        _, after = hidden_states_and_logits(lm.model, [], ids())
    assert torch.equal(before, after)
    assert receipt.steered == 0
    assert receipt.calls == len(SITES)


def test_padding_is_left_alone(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    site = SITES[3]
    before = hidden_states(lm.model, [site], ids(), mask)[site]
    with Rescaling(saes, {site: torch.arange(LATENTS)}, 0).applied(lm) as receipt:
        after = hidden_states(lm.model, [site], ids(), mask)[site]
    assert torch.equal(before[1, 5:], after[1, 5:])
    assert receipt.tokens == 23


def test_massive_tokens_are_left_alone(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    site, latents = SITES[3], torch.arange(LATENTS)
    before = hidden_states(lm.model, [site], ids())[site]
    long = lengths(before) > lengths(before).median()
    limit = NormLimit(1.0, float(lengths(before).median()))
    with Rescaling(saes, {site: latents}, 0, OrdinaryTokens(limits={site: limit})).applied(lm) as receipt:
        after = hidden_states(lm.model, [site], ids())[site]
    with Rescaling(saes, {site: latents}, 0).applied(lm):
        whole = hidden_states(lm.model, [site], ids())[site]
    assert torch.equal(after, torch.where(long[..., None], before, whole))
    assert 0 < receipt.steered <= int((~long).sum())


def test_codes_of_massive_tokens_are_empty_and_keep_their_places() -> None:
    model, sae = planted(), ToySAE()
    context = lab_of(
        {MIDDLE: sae, MLP: sae}, model=lambda: model, experiment=SimpleNamespace(token_rule=TokenRule(10.0))
    )
    texts = TokenRows.of(TOKENS)
    counted = ordinary_tokens(context, texts, (MIDDLE, MLP))
    massive = 0
    for batch in batches(context, texts):
        found, plain = (codes_at(context, {MIDDLE: sae, MLP: sae}, batch, c) for c in (counted, EVERY_LENGTH))
        long = batch.ids[batch.ordinary] == MASSIVE
        massive += int(long.sum())
        assert not found[MIDDLE].values[long].any()
        for site, tokens in ((MIDDLE, ~long), (MLP, torch.ones_like(long))):
            expected = plain[site].dense(sae.width)[tokens]
            torch.testing.assert_close(found[site].dense(sae.width)[tokens], expected)
    assert massive > 0
    fired = firing(context, TOKENS, (MIDDLE, MLP))
    assert fired.codes[MIDDLE].shape == fired.codes[MLP].shape == (len(fired.ids), sae.width)
    assert fired.codes[MIDDLE][[int(i) for i in np.flatnonzero(fired.ids == MASSIVE)]].nnz == 0


def test_generation_is_rescaled_with_a_cache_as_without(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    rescaling = Rescaling(saes, {SITES[0]: torch.arange(32), SITES[2]: torch.arange(9)}, -1.0)
    texts = []
    for cache in (True, False):
        with rescaling.applied(lm) as receipt:
            texts.append(lm.model.generate(ids(), max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=1))
        assert receipt.passes == 6
        assert receipt.calls == 12
    assert torch.equal(*texts)
    plain = lm.model.generate(ids(), max_new_tokens=6, do_sample=False, pad_token_id=1)
    assert not torch.equal(texts[0], plain)


def test_a_model_that_does_not_run_is_no_result(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    rescaling = Rescaling(saes, {SITES[0]: torch.arange(3)}, 0)
    with pytest.raises(CellFailed, match="did not run"), rescaling.applied(lm):
        pass
    with rescaling.applied(lm, idle=True):
        pass


def test_a_site_that_is_passed_over_is_no_result(lm: LanguageModel) -> None:
    late = Site(index=4)
    with pytest.raises(CellFailed, match="not applied as asked"), editing(lm.model, {late: lambda h, real: h * 0}):
        hidden_states(lm.model, [Site(index=1)], ids())  # stops before it


def test_hooks_are_gone_afterwards_whatever_is_raised(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    with pytest.raises(ZeroDivisionError), Rescaling(saes, {site: torch.arange(2) for site in SITES}, 0).applied(lm):
        raise ZeroDivisionError
    modules = [lm.model, *decoder_blocks(lm.model)[1].modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize("source", SITES[:4], ids=str)
def test_a_resumed_rerun_equals_one_from_the_tokens(
    lm: LanguageModel, saes: dict[Site, SparseAutoencoder], source: Site
) -> None:
    target = SITES[4] if source == SITES[3] else SITES[3]
    entry = entry_before(SITES[3] if source == SITES[3] else SITES[0])
    assert entry is not None
    real = torch.ones(3, 9, dtype=torch.bool)
    state = hidden_states(lm.model, [entry], ids())[entry]
    cases = RerunCases(torch.tensor([0, 2, 1, 0]), torch.tensor([8, 2, 0, 5]), torch.tensor([1, 5, 9, 63]))
    deltas = {source: 30 * torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(2))}
    runs = [
        rerun(lm, saes[target], target, RerunRows(ids(), real, place, states), cases, deltas, loss=loss)
        for place, states in ((entry, state), (None, None))
        for loss in (False, True)
    ]
    for run in runs[1:]:
        torch.testing.assert_close(run.activations, runs[0].activations, rtol=1e-4, atol=1e-4)
    assert runs[1].losses is not None
    torch.testing.assert_close(runs[1].losses, runs[3].losses, rtol=1e-5, atol=1e-5)
    with little_memory(lm.model, 20):  # two rows at a time
        runs.append(rerun(lm, saes[target], target, RerunRows(ids(), real, entry, state), cases, deltas, loss=True))
    torch.testing.assert_close(runs[-1].losses, runs[1].losses, rtol=1e-5, atol=1e-5)
    assert all(run.receipt.steered == 4 for run in runs)
    # One case by hand: the change at its token, the whole model, the latent behind it.
    edit = TokenEdit({source: deltas[source][:1]}, torch.tensor([8]))
    with edit.applied(lm):
        states, _ = hidden_states_and_logits(lm.model, [target], ids()[:1])
    z = saes[target].encode(states[target][0, 8:9]).dense(LATENTS)[0, 1]
    torch.testing.assert_close(runs[0].activations[0], z, rtol=1e-4, atol=1e-4)


def test_losses_count_predictions_from_the_token_on(lm: LanguageModel) -> None:
    from latentbench.flow.effects import losses_from

    logits = lm.model(input_ids=ids()).logits
    real = torch.ones(3, 9, dtype=torch.bool)
    real[0, 7:] = False
    found = losses_from(logits, ids(), real, torch.tensor([4, 8, 0]))
    single = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids()[:, 1:], reduction="none").double()
    wanted = [single[0, 4:6].sum(), torch.tensor(0.0).double(), single[2].sum()]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_schedules() -> None:
    blocks = [2, 3, 4, 6]
    assert scheduled("constant", 3, -0.05, blocks) == dict.fromkeys(blocks, 3)
    assert scheduled("linear", 3, -0.05, blocks) == {2: 3, 3: 2.5, 4: 2, 6: 1}
    found = scheduled("exponential", 3, -0.05, blocks)
    assert found == {block: pytest.approx(3 * math.exp(-0.05 * (block - 2))) for block in blocks}
    assert scheduled("linear", 3, 0, [5]) == {5: 3}


def test_cumulative_steering_adds_every_latent_of_the_path_at_its_layer(lm: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(LATENTS, D_MODEL, generator=generator))
    layers = {Site(index=i): TiedSae(rows[torch.randperm(LATENTS, generator=generator)]) for i in range(3)}
    maps = maps_of(layers, Flow())
    seed = LatentNode(Site(index=1), 7)
    atoms = {LatentNode(site, i): row for site, sae in layers.items() for i, row in enumerate(sae.decoder_rows())}
    direction = atoms[seed]
    steering = along(atoms, [route(maps, seed)], "linear", 5.0)
    assert steering.vectors.layers == (0, 1, 2)
    for layer, s in ((0, 5.0), (1, 3.0), (2, 1.0)):
        torch.testing.assert_close(steering.vectors.vectors[layer], s * direction)
    assert along(atoms, [route(maps, seed, (1, 2))], "constant", 5.0).vectors.layers == (1, 2)
    single = only(atoms, [seed], 5.0)
    torch.testing.assert_close(single.vectors.vectors[1], 5 * direction)
    with pytest.raises(InvalidInput, match="no latent of the flow graph"):
        along(atoms, [route(maps, seed, (4, 5))], "constant", 1.0)
    before = hidden_states(lm.model, [Site(index=1)], ids())[Site(index=1)]
    with single.applied(lm) as receipt:
        after = hidden_states(lm.model, [Site(index=1)], ids())[Site(index=1)]
    torch.testing.assert_close(after - before, (5 * direction).expand_as(after), rtol=1e-3, atol=1e-4)
    assert receipt.steered == 27


def test_removal_takes_the_whole_graph(lm: LanguageModel, saes: dict[Site, SparseAutoencoder]) -> None:
    options = Flow.model_validate({"thresholds": {"chance": 1, "cut": -1, "drop": -1}})
    maps = maps_of(saes, options)
    nodes = graph_nodes(maps, [LatentNode(Site(index=1), 7)])
    assert {node.site for node in nodes} == set(SITES)
    assert graph_nodes(maps, [LatentNode(Site(index=1), 7)], span=(2, 2)) == [
        n for n in nodes if n.site == Site(index=2)
    ]
    with removal(saes, nodes, 0.0).applied(lm) as receipt:
        lm.model(input_ids=ids())
    assert receipt.calls == len(SITES)


def test_identities_tell_interventions_apart(saes: dict[Site, SparseAutoencoder]) -> None:
    made = [
        Rescaling(saes, {SITES[0]: torch.tensor([1])}, 0).identity,
        Rescaling(saes, {SITES[0]: torch.tensor([2])}, 0).identity,
        Rescaling(saes, {SITES[0]: torch.tensor([1])}, -1).identity,
        Rescaling(saes, {SITES[1]: torch.tensor([1])}, 0).identity,
        Rescaling(saes, {SITES[0]: torch.tensor([1])}, 0, OrdinaryTokens(limits={SITES[0]: NormLimit(1, 9)})).identity,
        TokenEdit({SITES[0]: torch.ones(1, 4)}, torch.tensor([1])).identity,
        TokenEdit({SITES[0]: torch.ones(1, 4)}, torch.tensor([2])).identity,
    ]
    assert len({str(identity) for identity in made}) == len(made)
