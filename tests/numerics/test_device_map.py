"""A model that accelerate spreads over memory and disk, or over two devices, against the same model on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from pydantic import ValidationError
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks, input_device
from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.residual import HookPoint, hook_point
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.injection import injecting
from latentbench_adapters.model_placement import rejoined
from latentbench_adapters.transformers_model import TransformersModel
from tests.support.elsewhere import ELSEWHERE, Elsewhere, elsewhere
from tests.support.project import Workbench, numbers, run

CPU = torch.device("cpu")
IDS = torch.arange(24).view(2, 12) % 20 + 3
SITES = [Site(index=i, point=p) for i in (0, 1) for p in ("resid_pre", "resid_post", "attn_out", "mlp_out")]
MAPS: dict[str, Any] = {
    "one device": {"": "cpu"},
    "a block on the disk": {
        "model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk",
        "model.rotary_emb": "cpu", "lm_head": "cpu",
    },
    "all on the disk": {"": "disk"},
    "auto": "auto",
}  # fmt: skip


def loaded(folder: Path, device_map: Any = None) -> LanguageModel:
    model = TransformersModel.model_validate({"id": str(folder), "device_map": device_map})
    return model.load(Roots(folder.parent), CPU)


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> LanguageModel:
    return loaded(tiny_model)


@pytest.mark.parametrize("name", MAPS)
def test_states_and_logits_are_those_of_one_device_bit_for_bit(
    tiny_model: Path, whole: LanguageModel, name: str
) -> None:
    spread = loaded(tiny_model, MAPS[name])
    assert spread.device == CPU
    if "disk" in name:
        assert any(weight.is_meta for weight in spread.model.parameters()), "nothing was put on the disk"
    for found, wanted in zip(every_state(spread), every_state(whole), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", [name for name in MAPS if "disk" in name])
def test_vectors_are_added_and_the_receipt_says_so(tiny_model: Path, whole: LanguageModel, name: str) -> None:
    found, wanted = (steered(model) for model in (loaded(tiny_model, MAPS[name]), whole))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, whole.model(input_ids=IDS).logits)


def every_state(lm: LanguageModel) -> list[Tensor]:
    """Hidden states at every kind of site from both ways of reading them, and the logits."""
    with torch.no_grad():
        alone = [hidden_states(lm.model, [site], IDS)[site] for site in SITES]
        together, logits = hidden_states_and_logits(lm.model, SITES, IDS)
    return [*alone, *together.values(), logits]


def steered(lm: LanguageModel) -> Tensor:
    width = lm.model.config.hidden_size
    deltas = {layer: torch.linspace(-1, 1, width).to(lm.device) for layer in range(2)}
    with torch.no_grad(), injecting(lm.model, deltas) as receipt:
        logits: Tensor = lm.model(input_ids=IDS.to(lm.device), use_cache=False).logits
    assert receipt.steered == 2 * IDS.numel()
    return logits


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"model.layers.0": "cpu"}, "says nothing of 'model.embed_tokens.weight'"),
        ({"": "cpu", "model.layers.9": "disk"}, "the model has no part 'model.layers.9'"),
        ({"": "cuda:0"}, "cuda:0 is a GPU, but the cell runs on cpu"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tiny_model: Path, device_map: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match="device_map") as caught:
        loaded(tiny_model, device_map)
    assert message in str(caught.value)


@pytest.mark.parametrize("device_map", ["everywhere", {"": "tpu"}, {"": "../x"}])
def test_a_map_of_another_kind_is_no_spec(device_map: Any) -> None:
    with pytest.raises(ValidationError):
        TransformersModel.model_validate({"id": "./model", "device_map": device_map})


def test_a_map_is_in_no_key_and_stands_in_the_spec_where_it_is_given(tiny_model: Path) -> None:
    plain, spread = (
        TransformersModel.model_validate({"id": str(tiny_model), "device_map": one}) for one in (None, "auto")
    )
    roots = Roots(tiny_model.parent)
    assert plain.identity(roots) == spread.identity(roots)
    assert "device_map" not in plain.plain()
    assert spread.plain()["device_map"] == "auto"
    assert plain != spread
    assert len({plain, spread}) == 2


def test_a_row_of_a_model_on_the_disk_is_the_row_of_the_model_in_memory(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, device_map in (("memory", None), ("disk", MAPS["a block on the disk"])):
        bench.spec(name, metrics=["cross_entropy", "explained_variance"], model__device_map=device_map)
    monkeypatch.chdir(bench.root)
    assert run(["run", "memory", "--executor", "inline", "--device", "cpu"]) == 0
    assert run(["run", "disk", "--executor", "inline", "--device", "cpu", "--store", "other"]) == 0
    rows = [numbers(record) for record in bench.records().values()]
    assert rows[0]["cell"] == rows[1]["cell"]
    assert rows[0]["metrics"] == rows[1]["metrics"]


@pytest.mark.parametrize("point", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_nobody_mixes_devices_where_a_block_computes_elsewhere(
    tiny_model: Path, whole: LanguageModel, point: Any
) -> None:
    """The second block on another device, by the hooks that accelerate gives it there; what is read and added stays here."""
    site, width = Site(index=1, point=point), whole.model.config.hidden_size
    with elsewhere(), torch.no_grad():
        lm = loaded(tiny_model)
        second_block_elsewhere(lm.model)
        assert rejoined(lm.model) == input_device(lm.model) == CPU
        place = hook_point(lm.model, site)
        states, logits = hidden_states_and_logits(lm.model, [site], IDS)
        assert not isinstance(states[site], Elsewhere)
        assert not isinstance(logits, Elsewhere)
        moved = with_delta(lm.model, place, torch.ones(width)) if point != "resid_pre" else logits
        vectors = steered(lm)
    # To rounding: torch has other kernels of attention for a device that it does not know.
    (wanted,), expected = hidden_states_and_logits(whole.model, [site], IDS)[0].values(), whole.model(IDS).logits
    torch.testing.assert_close(states[site], wanted)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(vectors, steered(whole))
    if point != "resid_pre":
        there = with_delta(whole.model, hook_point(whole.model, site), torch.ones(width))
        torch.testing.assert_close(moved, there)


def second_block_elsewhere(model: Any) -> None:
    block = decoder_blocks(model)[1]
    for part in block.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = Elsewhere(weight.detach())  # type: ignore[assignment]
        add_hook_to_module(part, AlignDevicesHook(execution_device=ELSEWHERE))
    add_hook_to_module(model.model.norm, AlignDevicesHook(execution_device=CPU))
    add_hook_to_module(model, AlignDevicesHook(execution_device=CPU, io_same_device=True))


def with_delta(model: Any, place: HookPoint, delta: Tensor) -> Tensor:
    """Logits with `delta` added to every state at a place."""
    handle = place.module.register_forward_hook(
        lambda part, args, output: place.moved(output, delta.expand(place.read(output).shape))
    )
    try:
        with torch.no_grad():
            logits: Tensor = model(input_ids=IDS, use_cache=False).logits
        return logits
    finally:
        handle.remove()
