"""Stored hidden states: what is read is what would be computed, made once, whole or absent, and within its limits."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentbench.activations import row_states, state_shards, stored_states
from latentbench.activations.row_states import LiveRowStates, StoredRowStates, stored_row_states
from latentbench.activations.state_shards import Shards, StatesOrigin
from latentbench.activations.tokens import TrainTokens
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import TokenRule
from latentbench.sae.activation_stream import ActivationStream
from latentbench.sae.options.training import TrainingOptions
from latentbench.store.state_cache import CacheMode, make_room_for_states, states_limit
from latentbench.store.store import Store
from tests.unit.test_stream import CONTEXT, FIRST, INNER, MODEL, ROWS, SECOND, TOKENS

SITES = (FIRST, SECOND)
ORIGIN = StatesOrigin({"model": "tiny"}, "tokens")
ROW_BYTES = CONTEXT * 16 * 4


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_shards, "SHARD_BYTES", 5 * ROW_BYTES)  # 23 rows: shards of 5, 5, 5, 5 and 3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stored(
    store: Store, mode: CacheMode = "always", tokens: TrainTokens = TOKENS, lm: LanguageModel = MODEL, sites=SITES
) -> StoredRowStates | None:
    return stored_row_states(store, ORIGIN, lm, tokens, sites, mode)


def states_in(store: Store) -> list[str]:
    return [artifact.key for artifact in store.artifacts() if artifact.kind == "states"]


def stream(
    states: StoredRowStates | None, seed: int = 0, tokens: TrainTokens = TOKENS, lm: LanguageModel = MODEL
) -> list[Tensor]:
    options = TrainingOptions(batch=10, buffer=40)
    source = ActivationStream(lm, tokens, SITES, 2 * tokens.tokens, options, seed, rule=TokenRule(1.5), states=states)
    return [batch[site] for block in range(source.blocks) for batch in source.batches(block) for site in SITES]


def low_precision(dtype: torch.dtype) -> LanguageModel:
    return replace(MODEL, model=type(MODEL.model)(MODEL.model.config).eval().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_stream_that_reads_gives_the_batches_of_one_that_computes(
    store: Store, dtype: torch.dtype, seed: int
) -> None:
    lm = low_precision(dtype)
    found = stream(stored(store, lm=lm), seed, lm=lm)
    expected = stream(None, seed, lm=lm)
    assert len(found) == len(expected) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_rows_of_different_lengths_are_read_without_their_padding(store: Store) -> None:
    lengths = torch.tensor([1 + n % CONTEXT for n in range(ROWS)], dtype=torch.int32)
    padded = TrainTokens(TOKENS.ids, (), lengths)
    expected, found = stream(None, tokens=padded), stream(stored(store, tokens=padded), tokens=padded)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_states_are_computed_once_for_all_seeds_sites_and_later_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _counting(monkeypatch)
    first = stored(store)
    assert first is not None
    assert sum(rows) == ROWS
    for again in (stored(store), stored(store, "auto"), stored(Store(store.root)), stored(store, sites=(SECOND,))):
        assert again is not None
    assert sum(rows) == ROWS  # nothing is run where all is there
    stored(store, sites=(*SITES, INNER))
    assert sum(rows) == ROWS + ROWS  # for the new site alone
    assert len(states_in(store)) == 3 * 5


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows, real = [], row_states.hidden_states

    def counted(model, sites, ids, *mask):
        rows.append(len(ids))
        return real(model, sites, ids, *mask)

    monkeypatch.setattr(row_states, "hidden_states", counted)
    return rows


def test_a_kill_loses_at_most_the_shard_that_was_being_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LiveRowStates.stored

    def killed(self: LiveRowStates, cut: range, sites: Sequence[Site]) -> dict[Site, Tensor]:
        if cut.start == 15:
            raise KeyboardInterrupt
        return real(self, cut, sites)

    with monkeypatch.context() as patch:
        patch.setattr(LiveRowStates, "stored", killed)
        with pytest.raises(KeyboardInterrupt):
            stored(store)
    assert len(states_in(store)) == 2 * 3
    rows = _counting(monkeypatch)
    found = stored(store)
    assert sum(rows) == 5 + 3
    assert all(torch.equal(one, other) for one, other in zip(stream(found), stream(None), strict=True))


def test_a_damaged_shard_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(store)
    file = next(store.root.glob("objects/states/*/*/states.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    rows = _counting(monkeypatch)
    found = stored(Store(store.root))  # a new process would not have checked it yet
    assert sum(rows) in (5, 3)  # the last shard is smaller
    assert all(torch.equal(one, other) for one, other in zip(stream(found), stream(None), strict=True))


def test_shards_that_are_deleted_while_they_are_read_are_one_sentence(store: Store) -> None:
    found = stored(store)
    assert found is not None
    for artifact in store.artifacts():
        store.remove(artifact)
    with pytest.raises(CellFailed, match="was deleted while they were used; run it again"):
        found.read(torch.tensor([3]), torch.ones(1, CONTEXT, dtype=torch.bool))


def test_nothing_is_stored_where_it_is_not_wanted(store: Store) -> None:
    assert stored(store, "never") is None
    assert not states_in(store)


@pytest.mark.parametrize(("factor", "kept"), [(1e-9, True), (1e9, False)])
def test_auto_stores_where_computing_takes_much_longer(
    store: Store, factor: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_states, "PAYS", factor)
    assert (stored(store, "auto") is not None) == kept
    assert bool(states_in(store)) == kept
    assert stored(store, "always") is not None
    assert stored(store, "auto") is not None  # what is there is read in any case


def test_what_there_is_no_room_for_is_computed_or_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTBENCH_STATES", "10kB")
    assert stored(store, "auto") is None
    with pytest.raises(InvalidInput, match=r"for the hidden states of 184 tokens at 2 sites.*LATENTBENCH_STATES"):
        stored(store, "always")
    assert not states_in(store)
    monkeypatch.setenv("LATENTBENCH_STATES", "a lot")
    with pytest.raises(InvalidInput, match="not a size"):
        stored(store, "always")


def test_the_states_that_were_not_used_for_longest_make_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = stored_row_states(store, StatesOrigin({"model": "other"}, "tokens"), MODEL, TOKENS, SITES, "always")
    assert other is not None
    one = sum(artifact.bytes for artifact in store.artifacts())
    monkeypatch.setenv("LATENTBENCH_STATES", str(int(1.5 * one)))
    found = stored(store)
    assert found is not None
    assert found.keys <= set(states_in(store))
    assert len(states_in(store)) < 20
    with store.using(found.keys):  # what a live worker uses does not go
        assert not make_room_for_states(store, one, ())
        assert found.keys <= set(states_in(store))


def test_they_take_no_more_than_the_quota_of_the_store_leaves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writing("other", "a" * 64, {}) as folder:
        (folder / "x").write_bytes(bytes(5000))
    monkeypatch.setenv("LATENTBENCH_QUOTA", "20kB")
    assert 0 < states_limit(store) < 15_000
    monkeypatch.delenv("LATENTBENCH_QUOTA")
    assert states_limit(store) > 10**6
    assert states_limit(Store(store.root / "not" / "there")) > 10**6


def _make(root: str, barrier) -> None:
    state_shards.SHARD_BYTES = 5 * ROW_BYTES
    torch.set_num_threads(1)
    barrier.wait()
    assert stored(Store(Path(root))) is not None


def test_several_workers_share_the_work(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_make, args=(str(store.root), barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(states_in(store)) == 10
    assert all(torch.equal(one, other) for one, other in zip(stream(stored(store)), stream(None), strict=True))


def test_hidden_states_do_not_reach_the_wrong_texts(store: Store) -> None:
    """Keys say model, tokens, site and rows: none of them may be mistaken."""
    shards = [
        Shards.of_rows(origin, (site,), rows, CONTEXT, 64).ref(site, 0)
        for origin in (
            ORIGIN,
            replace(ORIGIN, tokens="others"),
            replace(ORIGIN, model={"model": "other"}),
            replace(ORIGIN, batches=9),
        )
        for site in (FIRST, SECOND, INNER)
        for rows in (3, 4)
    ]
    assert len(set(shards)) == len(shards)


def test_a_pass_gives_whole_rows_whatever_is_counted() -> None:
    live = LiveRowStates(MODEL, TOKENS, SITES)
    rows = torch.tensor([4, 2])
    whole, counted = live.whole(rows, SITES), torch.rand(2, CONTEXT) > 0.5
    assert torch.equal(live.read(rows, counted)[SECOND], whole[SECOND][counted])
