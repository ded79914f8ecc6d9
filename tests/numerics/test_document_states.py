"""Evaluation from stored hidden states: the numbers are those of computed ones, bit for bit, and the model is run no more than needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentbench.activations import state_shards, stored_states
from latentbench.activations.batching import batch_sizes
from latentbench.activations.resume import last_site, resumes_at_the_end
from latentbench.activations.state_shards import StatesOrigin
from latentbench.activations.tokens import EvalTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import TokenRule
from latentbench.reconstruction import document_states
from latentbench.reconstruction.document_states import StoredDocumentStates, states_to_store, stored_document_states
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults, measure
from latentbench.store.state_cache import CacheMode
from latentbench.store.store import Store
from tests.support import architectures
from tests.support.architectures import ARCHITECTURES, FAST, WIDTH, WORDS
from tests.support.passes import LAST, LM, MIDDLE, MLP, TOKENS, ToySAE, flat, requests

pytestmark = pytest.mark.usefixtures("one_thread")

ORIGIN = StatesOrigin({"model": "tiny"}, "tokens")
SITES = (MIDDLE, LAST, MLP)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stored(
    store: Store,
    lm: LanguageModel = LM,
    tokens: EvalTokens = TOKENS,
    read: Sequence[Site] = SITES,
    spliced: Sequence[Site] = SITES,
    mode: CacheMode = "always",
    forward_tokens: int = 40,
) -> StoredDocumentStates | None:
    sites = states_to_store(lm.model, read, spliced)
    assert sites is not None
    return stored_document_states(store, ORIGIN, lm, tokens, sites, mode, forward_tokens=forward_tokens)


def same(one: PassResults, other: PassResults) -> bool:
    first, second = flat(one), flat(other)
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


class Forwards:
    """How many tokens each block's MLP ran on, and the output embedding."""

    def __init__(self, model: Any) -> None:
        parts = [*(block.mlp for block in model.model.layers), model.get_output_embeddings()]
        self.counts = [0] * len(parts)
        self._handles = [part.register_forward_hook(self._counting(n)) for n, part in enumerate(parts)]

    def _counting(self, number: int) -> Any:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            self.counts[number] += output.shape[:-1].numel()

        return count

    def __enter__(self) -> list[int]:
        return self.counts

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def sae_of(seed: int, width: int) -> ToySAE:
    sae = ToySAE(seed)
    drawn = torch.randn(2, width, 24, generator=torch.Generator().manual_seed(seed)) / 4
    sae.d_in, sae.encoder, sae.decoder = width, drawn[0], drawn[1].T
    return sae


def texts(lengths: Sequence[int], words: int) -> EvalTokens:
    drawn = torch.randint(3, words, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    counts = torch.tensor(lengths, dtype=torch.int32)
    drawn[torch.arange(max(lengths)) >= counts[:, None]] = 0
    return EvalTokens(drawn.int(), counts, tuple(f"{n:016x}" for n in range(len(lengths))), 0)


STREAMS = [name for name in FAST if not FAST[name].residual]
SLOWER = [name for name in ARCHITECTURES if name not in FAST and not ARCHITECTURES[name].residual]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in STREAMS),
        *((name, torch.bfloat16) for name in ("llama", "gemma2", "mixtral")),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in SLOWER
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
)
def test_numbers_are_those_of_computed_states(name: str, dtype: torch.dtype, store: Store) -> None:
    """Baselines first with what is stored and then known, at two sites, spliced and not, in batches of several sizes."""
    model: Any = architectures.model_of(name, dtype)
    tokenizer = SimpleNamespace(**dict.fromkeys(("bos", "eos", "pad", "sep", "cls")))
    for token in ("bos", "eos", "pad", "sep", "cls"):
        setattr(tokenizer, f"{token}_token_id", None)
    lm, tokens = LanguageModel(model, tokenizer, torch.device("cpu")), texts([9, 3, 12, 12, 5, 2, 11], WORDS)
    splice = not ARCHITECTURES[name].handover
    one, other = Site(index=1), Site(index=2, point="resid_pre")
    asked = [
        MeasurementRequest("a", sae_of(1, WIDTH), one, splice=splice),
        MeasurementRequest("b", sae_of(2, WIDTH), other, (None, 2)),
    ]
    for limit in (24, 4096):
        sites = states_to_store(model, (one, other), (one,) if splice else ())
        if sites is None:
            pytest.skip("norm and head need more than the last block's output, so nothing is stored")
        kept = stored_document_states(store, ORIGIN, lm, tokens, sites, "always", forward_tokens=limit)
        rule, options = TokenRule(1.5), {"forward_tokens": limit}
        live = measure(lm, tokens, asked, rule=rule, **options)  # type: ignore[arg-type]
        assert not live.failures
        assert same(measure(lm, tokens, asked, rule=rule, states=kept, **options), live)  # type: ignore[arg-type]
        known = {"baselines": live.baselines, "rule": rule, **options}
        assert same(measure(lm, tokens, asked, states=kept, **known), measure(lm, tokens, asked, **known))  # type: ignore[arg-type]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 14), min_size=1, max_size=12),
    limit=st.integers(2, 60),
    shard=st.integers(1, 4000),
)
def test_whatever_the_batches_and_shards(
    lengths: list[int], limit: int, shard: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens, store = texts(lengths, 60), Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_shards, "SHARD_BYTES", shard)
        kept = stored(store, tokens=tokens, forward_tokens=limit)
    found = measure(LM, tokens, requests(), forward_tokens=limit, states=kept)
    assert same(found, measure(LM, tokens, requests(), forward_tokens=limit))


def test_where_memory_runs_out_parts_of_a_batch_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, expected = stored(store, forward_tokens=4096), measure(LM, TOKENS, requests(), forward_tokens=4096)
    real = StoredDocumentStates.read

    def short(self: StoredDocumentStates, batch: Any, sites: Any) -> dict[Site, Tensor]:
        if len(batch.documents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, sites)

    monkeypatch.setattr(StoredDocumentStates, "read", short)
    found = flat(measure(LM, TOKENS, requests(), forward_tokens=4096, states=kept))
    for name, values in flat(expected).items():
        torch.testing.assert_close(torch.as_tensor(found[name]), torch.as_tensor(values), rtol=1e-4, atol=1e-5)


def test_memory_may_run_out_in_search_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, seen = TokenRule(1.5), list[int]()
    expected = measure(LM, TOKENS, requests(), rule=rule)

    def short(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(len(kwargs["input_ids"]))
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = LM.model.register_forward_pre_hook(short, with_kwargs=True)
    found = measure(LM, TOKENS, requests(), rule=rule)
    handle.remove()
    assert seen[0] == len(TOKENS.ids) > seen[1]
    assert same(found, expected)


def test_one_more_sae_runs_the_head_and_the_blocks_behind_its_site(store: Store) -> None:
    known = measure(LM, TOKENS, requests(), forward_tokens=40).baselines
    padded = sum(count * longest for count, longest in batch_sizes(TOKENS.lengths.tolist(), 40))
    kept, spliced, plain = stored(store), requests()[0], requests()[1]
    one = MeasurementRequest("one", spliced.sae, MIDDLE, splice=True)
    with Forwards(LM.model) as ran:
        measure(LM, TOKENS, [one], baselines=known, forward_tokens=40, states=kept)
    assert ran == [0, 0, padded, 2 * padded]  # of three blocks the last, and the head for the clean logits too
    with Forwards(LM.model) as ran:
        measure(LM, TOKENS, [plain], baselines=known, forward_tokens=40, states=kept)
        measure(
            LM, TOKENS, sites=[MIDDLE], forward_tokens=40, states=kept
        )  # every length counts: no limit is looked for
    assert ran == [0, 0, 0, 0]


def test_states_are_computed_once_and_only_as_deep_as_needed(store: Store) -> None:
    padded = sum(count * longest for count, longest in batch_sizes(TOKENS.lengths.tolist(), 40))
    with Forwards(LM.model) as ran:
        stored(store, read=[MIDDLE], spliced=[])
        assert ran == [padded, padded, 0, 0]
        stored(store, read=[MIDDLE], spliced=[])
        stored(Store(store.root), read=[MIDDLE], spliced=[], mode="auto")
        assert ran == [padded, padded, 0, 0]
        stored(store, read=[MIDDLE, LAST], spliced=[MIDDLE])  # the output of the last block, which serves both
    assert ran == [2 * padded, 2 * padded, padded, 0]
    assert len(list(store.artifacts("states"))) == 2


def test_batches_of_another_size_are_other_states(store: Store) -> None:
    """They are padded to other lengths, which may change the last bits."""
    stored(store, forward_tokens=40)
    before = len(list(store.artifacts()))
    stored(store, forward_tokens=20)
    assert len(list(store.artifacts())) == 2 * before


def test_a_kill_loses_the_shard_that_was_being_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_shards, "SHARD_BYTES", 1)  # a batch in each
    real, calls = document_states._Computing.__call__, list[int]()

    def killed(self: Any, number: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
        if number == 2:
            raise KeyboardInterrupt
        calls.append(number)
        return real(self, number, sites)

    with monkeypatch.context() as patch:
        patch.setattr(document_states._Computing, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            stored(store)
    assert calls == [0, 1]
    kept = stored(store)
    assert same(
        measure(LM, TOKENS, requests(), forward_tokens=40, states=kept),
        measure(LM, TOKENS, requests(), forward_tokens=40),
    )


def test_what_there_is_no_room_for_or_no_use_in_is_computed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored(store, mode="never") is None
    with monkeypatch.context() as patch:
        patch.setattr(stored_states, "PAYS", 1e9)
        assert stored(store, mode="auto") is None
    monkeypatch.setenv("LATENTBENCH_STATES", "1kB")
    assert stored(store, mode="auto") is None
    with pytest.raises(InvalidInput, match=r"hidden states of .* tokens at 4 sites.*LATENTBENCH_STATES"):
        stored(store)
    assert not list(store.artifacts())


def test_a_model_whose_head_needs_more_than_the_last_block_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resumes_at_the_end(LM.model)
    monkeypatch.setattr(document_states, "resumes_at_the_end", lambda model: False)
    assert states_to_store(LM.model, [MIDDLE], [MIDDLE]) is None
    assert states_to_store(LM.model, [MIDDLE], []) == (MIDDLE,)
    assert last_site(LM.model) == LAST
