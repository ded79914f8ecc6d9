"""SAEs away from the CPU: everything that takes part goes along, shown on the device that has shapes and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from latentbench.sae.trainer import NativeTrainer, _moments
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
