"""Training: bit-exact resume, determinism, isolation of failures, bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import cos, inf, pi
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.core.errors import CellFailed, RefusedFile
from latentbench.core.resources import now
from latentbench.sae.autoencoder import TrainableSAE
from latentbench.sae.memory import gradients, release
from latentbench.sae.options import (
    BatchTopKOptions,
    PCAOptions,
    StandardOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.sparse_kernels.autograd import preactivations, top_linear
from latentbench.sae.sparse_kernels.dispatch import forced
from latentbench.sae.trainer import learning_rate, train
from latentbench.sae.variants.boosting import Extended
from latentbench.sae.variants.controls import FittedTrainer
from tests.support.trainers import (
    BASE,
    HERE,
    IDS,
    OPTIONS,
    RECIPE,
    THERE,
    WIDTH,
    Blocks,
    D,
    K,
    assert_equal_weights,
    interrupted,
    trained,
    trainer,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_resuming_at_every_block_gives_the_same_bits(options: Variant) -> None:
    done, straight = trained(options)
    resumed, again = interrupted(options)
    assert_equal_weights(done, resumed)
    assert straight.training_record() == again.training_record()
    fresh = trainer(options)
    fresh.sae.fold_input_scale(fresh.scale)
    moved = [not torch.equal(t, fresh.sae.state_dict()[name]) for name, t in done.state_dict().items()]
    assert any(moved), "training has changed nothing"


def test_training_is_deterministic_and_depends_on_the_seed() -> None:
    (one, _), (same, _), (other, _) = (trained(BASE, seed) for seed in (0, 0, 1))
    assert_equal_weights(one, same)
    assert not torch.equal(one.decoder_rows(), other.decoder_rows())  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS[:5], ids=IDS[:5])
def test_the_number_of_threads_changes_no_bit_of_a_kernel(options: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients with one, two and three threads; pre-activations are exact here (small integers), whoever sums them."""
    monkeypatch.setattr("latentbench.sae.sparse_kernels.compiling.SMALL", 0)
    d_in = 300  # more than two slices of the prefix kernel
    x = torch.randint(-2, 3, (50, d_in), generator=torch.Generator().manual_seed(1)).float()

    def gradients(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        sae = options.build(d_in, torch.Generator().manual_seed(0))
        assert isinstance(sae, TrainableSAE)
        for name, parameter in sae.named_parameters():
            parameter.data = (parameter.data * 40).round() / 4 if "encoder" in name else parameter.data
        sae.loss(x, torch.zeros(WIDTH, dtype=torch.bool), 0, 1).total.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in sae.parameters() if p.grad is not None]

    before = torch.get_num_threads()
    try:
        one, *others = (gradients(threads) for threads in (1, 2, 3))
    finally:
        torch.set_num_threads(before)
    assert len(one) == 4
    for other in others:
        for name, (a, b) in enumerate(zip(one, other, strict=True)):
            assert torch.equal(a, b), name


def test_an_sae_is_the_same_alone_and_in_a_group() -> None:
    """Dimensions differ, so shared buffers change hands between the two."""
    wanted, _ = trained(BASE)
    group = [trainer(BatchTopKOptions(width=20, k=2)), trainer(BASE), trainer(BASE, THERE), trainer(OPTIONS[2])]
    outcomes = train(group, Blocks())
    assert_equal_weights(wanted, outcomes[group[1]])  # type: ignore[arg-type]


def test_trainees_at_different_blocks_each_see_every_block_once() -> None:
    ahead, behind = trainer(BASE), trainer(BASE)
    taken: dict[int, dict[str, Tensor]] = {}
    train([ahead], Blocks(), checkpoint=lambda alive: taken.update({alive[0].next_block: alive[0].state()}))
    assert sorted(taken) == list(range(1, 11))
    resumed = trainer(BASE)
    resumed.load_state(taken[6])
    seen: list[int] = []
    outcomes = train([resumed, behind], Blocks(), after_batch=seen.append)
    assert seen == [block for block in range(10) for _ in range(2)]
    assert_equal_weights(outcomes[resumed], outcomes[behind])  # type: ignore[arg-type]


def test_a_trainee_that_fails_is_dropped_and_the_others_go_on() -> None:
    healthy, failing = trainer(BASE, HERE), trainer(BASE, THERE)
    checkpoints: list[int] = []
    outcomes = train([healthy, failing], Blocks(corrupt=4), checkpoint=lambda alive: checkpoints.append(len(alive)))
    error = outcomes[failing]
    assert isinstance(error, CellFailed)
    assert "loss is nan at step 8 of 20 (learning rate" in str(error)
    assert "lower training.lr" in str(error)
    assert checkpoints == [2] * 4 + [1] * 6
    alone, _ = trained(BASE)
    assert_equal_weights(outcomes[healthy], alone)  # type: ignore[arg-type]


def test_every_sae_is_charged_the_time_of_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is asked for the device of the hidden states right before and right after a step, and nowhere else."""
    asked: list[tuple[str, int]] = []
    trainers = [trainer(BASE), trainer(BASE)]

    def clock(device: torch.device) -> float:
        asked.append((device.type, sum(t.next_step for t in trainers)))
        return float(asked[-1][1])

    monkeypatch.setattr("latentbench.sae.trainer.now", clock)
    train(trainers, Blocks())
    assert asked == [("cpu", done) for step in range(40) for done in (step, step + 1)]
    assert [t.throughput.seconds for t in trainers] == [20.0, 20.0]


def test_the_clock_waits_for_what_a_device_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    assert now(torch.device("cpu")) <= now(torch.device("cuda:1")) <= now(torch.device("cpu"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("options", "forced_to", "kernels"),
    [(BASE, "", "numba"), (BASE, "torch", "torch"), (OPTIONS[8], "torch", "torch"), (OPTIONS[7], "", "autograd")],
)
def test_the_record_says_which_kernels_made_the_steps(options: Variant, forced_to: str, kernels: str) -> None:
    first = trainer(options)
    for batch in Blocks().batches(0):
        first.step(batch[HERE])
    with forced(forced_to):
        second = trainer(options)
        second.load_state(first.state())
        second.step(next(Blocks().batches(1))[HERE])
    before = "autograd" if kernels == "autograd" else "numba"
    made = second.training_record()["kernels"]
    assert made == ({kernels: 3} if before == kernels else {before: 2, kernels: 1})


def test_training_ends_early_when_all_have_failed() -> None:
    failing = trainer(BASE, THERE)
    seen: list[int] = []
    outcomes = train([failing], Blocks(corrupt=0), after_batch=seen.append)
    assert isinstance(outcomes[failing], CellFailed)
    assert seen == [0, 0]


def test_a_checkpoint_of_another_sae_is_refused() -> None:
    state = trainer(BASE).state()
    for options in (TopKOptions(width=WIDTH + 1, k=K), StandardOptions(width=WIDTH)):
        with pytest.raises(RefusedFile, match="does not fit"):
            trainer(options).load_state(state)
    with pytest.raises(RefusedFile, match="does not fit"):
        trainer(BASE).load_state({})


def test_moments_resume_exactly() -> None:
    def fresh() -> FittedTrainer:
        return FittedTrainer(PCAOptions(k=4).build(D, torch.Generator()), HERE)  # type: ignore[arg-type]

    straight = fresh()
    wanted = train([straight], Blocks())[straight]
    state = fresh().state()
    for block in range(10):
        running = fresh()
        running.load_state(state)
        for batch in Blocks().batches(block):
            running.step(batch[HERE])
        state = running.state()
    assert_equal_weights(wanted, running.finish())  # type: ignore[arg-type]
    with pytest.raises(CellFailed, match="NaN or infinity"):
        fresh().step(torch.full((2, D), inf))
    with pytest.raises(CellFailed, match="no hidden states"):
        fresh().finish()


def test_dead_latents_are_those_silent_for_long_enough() -> None:
    one = trainer(BASE, recipe=RECIPE.model_copy(update={"dead_after": 96}))
    one.sae.get_parameter("encoder.bias").data[:4] = -1e6
    counts = []
    for block in range(5):
        for batch in Blocks().batches(block):
            one.step(batch[HERE])
            counts.append(int((one.silent[:4] >= 96).sum()))
    assert counts[:4] == [0, 0, 4, 4]
    assert (one.silent % 32 == 0).all()
    curve = one.training_record()["curve"]
    assert curve["auxiliary"][2] == 0
    assert curve["auxiliary"][3] > 0


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_spare_gradients_do_not_pile_up(options: Variant) -> None:
    release()
    one, sizes = trainer(options), []
    for block in range(4):
        for batch in Blocks().batches(block):
            one.step(batch[HERE])
            sizes.append(len(gradients))
    assert max(sizes) == sizes[0] <= 4
    release()
    assert len(gradients) == 0


def test_the_curve_records_what_happened() -> None:
    _, one = trained(BASE)
    curve = one.training_record()["curve"]
    assert curve["step"] == list(range(20))
    assert curve["l0"][0] == K
    assert curve["reconstruction"][-1] < curve["reconstruction"][0]
    *_, last = (batch[HERE] for batch in Blocks().batches(9))
    spread = (last - last.mean(0)).pow(2).sum(1).mean().item() * one.scale**2
    assert curve["normalised"][-1] == pytest.approx(curve["reconstruction"][-1] / spread, rel=1e-4)
    assert curve["lr"] == [learning_rate(RECIPE, step, 20) for step in range(20)]


def test_learning_rate_warms_up_and_decays_to_its_end() -> None:
    recipe = TrainingOptions(lr=1e-2, final_lr=1e-4, warmup=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == rates[10] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-4)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate(TrainingOptions(warmup=0), 0, 1) == 8e-4


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"schedule": "linear"}, lambda step: 1 - (step - 10) / 89),
        ({"schedule": "linear", "decay": 0.2}, lambda step: 1 if step < 80 else 1 - (step - 80) / 19),
        ({"decay": 0.2}, lambda step: 1 if step < 80 else (1 + cos(pi * (step - 80) / 19)) / 2),
        ({"schedule": "constant"}, lambda step: 1),
    ],
    ids=["linear", "linear at the end", "cosine at the end", "constant"],
)
def test_schedules_of_the_learning_rate(recipe: dict[str, Any], expected: Callable[[int], float]) -> None:
    options = TrainingOptions(lr=1e-2, final_lr=1e-4, warmup=0.1, **recipe)
    rates = [learning_rate(options, step, 100) for step in range(10, 100)]
    assert rates == pytest.approx([1e-4 + (1e-2 - 1e-4) * expected(step) for step in range(10, 100)], rel=1e-12)
    assert learning_rate(options, 0, 1) <= 1e-2  # a run of one step is one


def test_weight_decay_is_that_of_adamw() -> None:
    """Two steps of a trainer against torch's AdamW on the gradients that the loss has, everything in float64."""
    recipe = RECIPE.model_copy(update={"weight_decay": 3.0, "gradient_clip": None})
    one, oracle = trainer(BASE, recipe=recipe), trainer(BASE, recipe=recipe)
    for made in (one, oracle):
        made.sae.double()
        made.adam.state.clear()
    adamw = torch.optim.AdamW(oracle.sae.parameters(), betas=recipe.betas, weight_decay=3.0)
    for step, batch in enumerate(Blocks().batches(0)):
        x = batch[HERE].double()
        one.step(x)
        adamw.param_groups[0]["lr"] = learning_rate(recipe, step, 20)
        adamw.zero_grad()
        oracle.sae.loss(x * oracle.scale, oracle.silent >= oracle.dead_after, step, 20).total.backward()
        adamw.step()
    for name, weight in oracle.sae.state_dict().items():
        torch.testing.assert_close(one.sae.state_dict()[name], weight, rtol=1e-12, atol=1e-12)
    assert one.training_record()["optimiser"] == "AdamW"


def test_weight_decay_leaves_frozen_weights_alone() -> None:
    options = next(one for one in OPTIONS if one.variant == "extended")
    one = trainer(options, recipe=RECIPE.model_copy(update={"weight_decay": 1.0}))
    sae = one.sae
    assert isinstance(sae, Extended)
    frozen = [sae.encoder.weight, sae.encoder.bias, sae.W_dec]
    before = [weight[: sae.old].detach().clone() for weight in frozen]
    for batch in Blocks().batches(0):
        one.step(batch[HERE])
    assert all(torch.equal(weight[: sae.old], old) for weight, old in zip(frozen, before, strict=True))


@pytest.mark.parametrize(("clip", "share"), [(1e-6, 1.0), (1e6, 0.0), (None, 0.0)])
def test_the_record_says_how_many_steps_were_clipped(clip: float | None, share: float) -> None:
    one = trainer(BASE, recipe=RECIPE.model_copy(update={"gradient_clip": clip}))
    for block in range(2):
        for batch in Blocks().batches(block):
            one.step(batch[HERE])
    record = one.training_record()
    assert (record["share_clipped"], record["steps"], record["optimiser"]) == (share, 4, "Adam")
    earlier = one.state()
    earlier.pop("clipped")
    resumed = trainer(BASE)
    resumed.load_state(earlier)
    assert resumed.training_record()["share_clipped"] is None, "nobody counted the first steps"


def test_gradients_are_clipped_together() -> None:
    """With plain gradients of global norm ≫ 1, Adam's first moment is the clipped gradient times 1 − β₁."""
    one = trainer(BASE, recipe=RECIPE.model_copy(update={"gradient_clip": 0.01}))
    one.step(next(Blocks().batches(0))[HERE])
    moments = [one.adam.state[p]["exp_avg"] for p in one.parameters.values()]
    norm = torch.cat([m.flatten() for m in moments]).norm() / 0.1
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


# -- bfloat16 --------------------------------------------------------------------------------------------------------

LOW = RECIPE.model_copy(update={"precision": "bfloat16"})


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_low_precision_keeps_weights_and_moments_exact_and_resumes_to_the_bit(options: Variant) -> None:
    done, straight = trained(options, recipe=LOW)
    resumed, again = interrupted(options, recipe=LOW)
    assert_equal_weights(done, resumed)
    assert straight.training_record() == again.training_record()
    assert straight.training_record()["precision"] == "bfloat16"
    assert {t.dtype for t in straight.state().values() if t.is_floating_point()} <= {torch.float32, torch.float64}


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_low_precision_learns_what_full_precision_learns(options: Variant) -> None:
    (_, low), (_, full) = trained(options, recipe=LOW), trained(options)
    ours, exact = (torch.tensor(one.training_record()["curve"]["reconstruction"]) for one in (low, full))
    assert not torch.equal(ours, exact)
    # Over the whole curve: which of two latents is chosen may differ in a step, and with it what that step says.
    assert float(ours.mean()) == pytest.approx(float(exact.mean()), rel=0.01)


def test_a_low_precision_product_is_rounded_once_and_selection_is_exact_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(50, 64, generator=generator),
        torch.randn(200, 64, generator=generator),
        torch.randn(200),
    )
    with torch.autocast("cpu", torch.bfloat16):
        pre = preactivations(x, weight, bias).clone()
        codes = top_linear(x, weight, bias, 7)
    exact = x.bfloat16().double() @ weight.bfloat16().double().T
    assert pre.dtype == torch.float32
    # bfloat16 has 8 significant bits; sums are made in float32.
    torch.testing.assert_close(pre.double() - bias.double(), exact, rtol=2**-8, atol=1e-4)
    expected = pre.topk(7)
    assert torch.equal(codes.values, expected.values)
    assert torch.equal(pre.gather(1, codes.indices), expected.values)
    assert torch.equal(preactivations(x, weight, bias), torch.addmm(bias, x, weight.T))
