"""Massive activations: what counts as one, and that a training stream holds none, whatever the order and the company."""

from __future__ import annotations

import math
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import NormLimit, OrdinaryTokens, lengths, named_ids, named_mask
from latentbench.activations.tokens import TrainTokens
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.distributed.process_group import ProcessGroup
from latentbench.sae.activation_stream import ActivationStream
from latentbench.sae.options.training import TrainingOptions
from tests.support.massive import BOS, MASSIVE, massive_model, tokenizer

FIRST, LAST, INNER = Site(index=0), Site(index=2), Site(index=1, point="mlp_out")
RULE = TokenRule(10.0)
MODEL = massive_model()
IDS = torch.randint(0, 12, (23, 8), generator=torch.Generator().manual_seed(3)).int()


def stream(
    rule: TokenRule = RULE, sites: tuple[Site, ...] = (LAST,), ids: Tensor = IDS, **more: object
) -> ActivationStream:
    options = TrainingOptions(batch=10, buffer=int(more.pop("buffer", 40)))  # type: ignore[call-overload]
    model = more.pop("model", MODEL)
    return ActivationStream(model, TrainTokens(ids, ()), sites, ids.numel(), options, 0, rule=rule, **more)  # type: ignore[arg-type]


def batches(source: ActivationStream, site: Site = LAST, block: int | None = None) -> list[Tensor]:
    blocks = range(source.blocks) if block is None else [block]
    return [batch[site] for number in blocks for batch in source.batches(number)]


def in_order(states: Tensor) -> Tensor:
    return states[torch.argsort(states[:, 0])]


@given(st.lists(st.floats(0, 1e6, width=32), max_size=30), st.floats(1.5, 100))
def test_the_limit_is_a_multiple_of_a_length_that_occurs(found: list[float], multiple: float) -> None:
    limit = NormLimit.of(torch.tensor([*found, math.nan, math.inf]), multiple)
    median = sorted(found)[(len(found) - 1) // 2] if found else math.nan
    assert limit.median == median or (math.isnan(median) and math.isnan(limit.median))
    assert limit.length == (multiple * median if median > 0 else math.inf)
    assert NormLimit.of(torch.tensor(found), None).length == math.inf


def test_what_is_not_a_number_is_not_hidden_as_massive() -> None:
    states = torch.tensor([[3.0, 4.0], [300.0, 400.0], [math.nan, 1.0], [math.inf, 0.0]])
    limits = OrdinaryTokens(limits={LAST: NormLimit(5.0, 50.0)})
    assert limits.short(LAST, states).tolist() == [True, False, True, True]
    assert limits.short(FIRST, states).all()  # nothing is known of that place
    assert lengths(states.half())[:2].tolist() == [5, 500]  # squares of which float16 does not hold


def test_tokens_are_named_as_the_vocabulary_spells_them_or_by_their_text() -> None:
    class Named:
        unk_token_id = 3

        def get_vocab(self) -> dict[str, int]:
            return {"<|im_start|>": 11, "Ċ": 12}

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": {"\n": [12], "odd": [3]}.get(text, [1, 2])}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"<{token}>" for token in ids]

    named = named_ids(TokenRule(named=("<|im_start|>", "\n")), Named())  # type: ignore[arg-type]
    assert named == {11, 12}
    assert named_mask(torch.tensor([[11, 5], [12, 11]]), named).tolist() == [[True, False], [True, True]]
    for text in ("two words", "odd"):
        with pytest.raises(InvalidInput, match=f"leave_out: '{text}' is not one token"):
            named_ids(TokenRule(named=(text,)), Named())  # type: ignore[arg-type]


def test_an_epoch_holds_every_state_once_but_the_massive_ones() -> None:
    with torch.no_grad():
        states = hidden_states(MODEL.model, [LAST], IDS.long())[LAST]
    ordinary, massive = IDS != BOS, IDS == MASSIVE
    for rule, kept in ((RULE, ordinary & ~massive), (EVERY_TOKEN, ordinary)):
        source = stream(rule)
        got = batches(source)
        torch.testing.assert_close(in_order(torch.cat(got)), in_order(states[kept]))
        assert len(got) == source.steps
    assert massive.sum() > 5
    assert stream().steps == stream(EVERY_TOKEN).steps  # so that learning rates fall alike


def test_what_is_learnt_of_block_0_is_learnt_without_them() -> None:
    source = stream(buffer=IDS.numel())
    block = torch.cat(batches(source, block=0))
    assert source.first_norms[LAST] == pytest.approx(float(block.double().norm(dim=1).mean()), rel=1e-6)
    torch.testing.assert_close(source.means[LAST], block.mean(0))
    left_out = source.left_out[LAST]
    massive, ordinary = int((IDS == MASSIVE).sum()), int((IDS != BOS).sum())
    assert (left_out.tokens, left_out.massive, left_out.named) == (ordinary - massive, massive, 0)
    assert left_out.share == massive / ordinary
    assert left_out.limit.length == 10 * left_out.limit.median
    assert stream(EVERY_TOKEN, buffer=IDS.numel()).first_norms[LAST] > 3 * source.first_norms[LAST]


def test_named_tokens_are_gone_before_the_model_is_run() -> None:
    by_name = stream(TokenRule(None, (f"w{MASSIVE}",)))
    special = stream(EVERY_TOKEN, model=massive_model(eos=MASSIVE))
    for a, b in zip(batches(by_name), batches(special), strict=True):
        assert torch.equal(a, b)
    assert by_name.left_out[LAST].named == int((IDS[by_name._rows(0)] == MASSIVE).sum())


def test_a_site_is_the_same_alone_and_in_company_where_other_tokens_are_massive() -> None:
    """The output of an MLP does not hold what its block was given."""
    alone, company = stream(sites=(INNER,)), stream(sites=(LAST, INNER))
    assert alone.left_out[INNER].massive == 0
    for a, b in zip(batches(alone, INNER), batches(company, INNER), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(batches(stream()), batches(company), strict=True):
        assert torch.equal(a, b)


def test_every_block_can_be_the_first_after_a_stop() -> None:
    whole = stream()
    expected = {block: batches(whole, block=block) for block in range(whole.blocks)}
    for block in range(whole.blocks):
        for a, b in zip(batches(stream(), block=block), expected[block], strict=True):
            assert torch.equal(a, b)


def test_a_block_of_massive_tokens_alone_fails_with_a_way_out() -> None:
    ids = torch.full((6, 8), 5, dtype=torch.int32)
    ids[3] = MASSIVE
    source = stream(ids=ids, buffer=10)
    if 3 in source._rows(0):
        pytest.skip("the row came first")
    with pytest.raises(CellFailed, match=r"all but 0 are massive .* `massive: keep`"):
        batches(source)


class Threads(ProcessGroup):
    """Members in threads of this process."""

    def __init__(self, rank: int, size: int, board: list[Tensor], barrier: Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait(30)
        found = list(self._board)
        self._barrier.wait(30)
        return found

    def all_sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor)).sum(0)

    def all_gather(self, values: Tensor) -> Tensor:
        return torch.cat(self._exchange(values))


def test_members_of_a_group_share_the_batches_of_one_process() -> None:
    board, barrier = [torch.zeros(0)] * 2, Barrier(2)
    own: list[list[Tensor]] = [[], []]
    norms, models = [0.0, 0.0], [massive_model() for _ in range(2)]  # hooks on one model would meet

    def work(rank: int) -> None:
        source = stream(group=Threads(rank, 2, board, barrier), model=models[rank])
        own[rank], norms[rank] = batches(source), source.first_norms[LAST]

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = stream()
    expected = batches(alone)
    assert len(own[0]) == len(own[1]) == len(expected)
    for shares, batch in zip(zip(*own, strict=True), expected, strict=True):
        torch.testing.assert_close(in_order(torch.cat(shares)), in_order(batch))
    assert norms == pytest.approx([alone.first_norms[LAST]] * 2, rel=1e-6)


def test_the_planted_tokenizer_spells_its_words() -> None:
    assert named_ids(TokenRule(named=("w7",)), tokenizer()) == {MASSIVE}  # type: ignore[arg-type]
