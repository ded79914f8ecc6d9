"""SAEs away from the CPU: everything that takes part goes along.

Shown on the device that has shapes and no numbers, and by whole trainings on one that computes here and says it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import (
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    JumpReLUOptions,
    StitchedOptions,
    TopKOptions,
    Variant,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer, _moments, train
from tests.numerics.test_sae_data_parallel import OPTIONS, Blocks, Made, alone, apart, trainer
from tests.support.elsewhere import ELSEWHERE, Elsewhere, brought, elsewhere
from tests.support.trained import SITE, WIDTH, D, K, rng, tokens, trained

pytestmark = pytest.mark.usefixtures("one_thread")

META = torch.device("meta")
TOP, JUMP = TopKOptions(width=WIDTH, k=K), JumpReLUOptions(width=WIDTH)
BOOST = BoostedOptions(base=TOP, width=20, k=2, selection="topk")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor that hangs on an object, however it is kept."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from chain.from_iterable(map(tensors_of, vars(value).values()))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(tensors_of, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(tensors_of, value))
    elif is_dataclass(value):
        yield from chain.from_iterable(tensors_of(getattr(value, field.name)) for field in fields(value))


@pytest.mark.parametrize(
    ("options", "base"),
    [
        (FineTunedOptions(base=TOP), TOP),
        (ExtendedOptions(base=TOP, extra_width=12, extra_k=2), TOP),
        (StitchedOptions(base=TOP, grafted=10), TOP),
        (StitchedOptions(base=JUMP, grafted=10, k=3), JUMP),
        (BOOST, TOP),
    ],
    ids=lambda o: o.variant,
)
def test_an_sae_on_a_base_takes_all_of_it_along(options: Variant, base: Variant) -> None:
    sae = options.build(D, rng(), (trained(base),)).to(META)
    assert {t.device for t in tensors_of(sae)} == {META}
    if base is TOP:  # a running threshold is asked whether it has started, which takes numbers
        sae.begin(torch.zeros(D, device=META), 0.5)
        sae.fold_input_scale(0.5)


def test_an_ensemble_takes_its_boosts_along() -> None:
    base = trained(TOP)
    boosts = tuple(trained(BOOST, base, steps=n) for n in (3, 5))
    both = EnsembleOptions(boosts=(BOOST, BOOST)).build(D, rng(), boosts).to(META)
    assert {t.device for t in tensors_of(both)} == {META}
    assert both(torch.zeros(7, D, device=META)).shape == (7, D)


def test_the_moments_of_a_checkpoint_go_where_the_parameter_is() -> None:
    x = tokens(64)
    trainer = NativeTrainer(
        TOP.build(D, rng()), SITE, TrainingOptions(batch=64), steps=4, first_norm=1.0, mean=x.mean(0)
    )
    trainer.step(x)
    state, weight = trainer.state(), trainer.sae.get_parameter("W_dec")
    assert state["adam.W_dec.step"].item() == 1
    moments = _moments(state, "adam.W_dec.", nn.Parameter(weight.to(META)))
    assert {name: t.device for name, t in moments.items()} == dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), META)
    here = _moments(state, "adam.W_dec.", weight)
    assert all(torch.equal(t, state[f"adam.W_dec.{name}"]) for name, t in here.items())
    assert not any(t.data_ptr() == state[f"adam.W_dec.{name}"].data_ptr() for name, t in here.items())


COMPARED = sorted(set(OPTIONS) - {"extended"})
"""Without the one that starts from copies of its own latents: between equals each implementation may choose differently."""
STOP = 3


class Until(Blocks):
    """The stream's blocks elsewhere, up to one of them."""

    def __init__(self, last: int) -> None:
        super().__init__(torch.float64, device=ELSEWHERE)
        self.blocks = last


def trained_elsewhere(name: str) -> SparseAutoencoder:
    """Interrupted once, and continued from a checkpoint that was on the CPU, as one that was read from a file is."""
    state: dict[str, Tensor] = {}

    def checkpoint(active: list[Made]) -> None:
        state.update({key: tensor.cpu() for key, tensor in active[0].state().items()})

    train([trainer(name, torch.float64, device=ELSEWHERE)], Until(STOP), checkpoint)
    one = trainer(name, torch.float64, device=ELSEWHERE)
    one.load_state(state)
    done = train([one], Until(8), checkpoint)[one]
    assert isinstance(done, SparseAutoencoder), done
    return done


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("name", COMPARED)
def test_a_training_elsewhere_never_mixes_devices_and_is_that_of_the_cpu(name: str) -> None:
    """Through torch's operations, as where the kernels cannot be had."""
    wanted = {key: tensor for key, tensor in alone(name, "float64").items() if key.startswith("weights.")}
    with elsewhere():
        found = trained_elsewhere(name).state_dict()
        assert {type(tensor) for tensor in found.values()} == {Elsewhere}
        assert (
            max(apart(tensor, brought(found[key.removeprefix("weights.")])) for key, tensor in wanted.items()) < 1e-12
        )


def test_tensors_of_two_devices_do_not_mix() -> None:
    with elsewhere():
        here, there = torch.arange(3.0), torch.arange(3.0).to(ELSEWHERE)
        for mix in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: there.lerp_(here, 0.5),
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                mix()
        assert torch.equal((there[here.long()] * here[2] + there).cpu(), here * 3)
