"""A model that one device does not hold: accelerate spreads it over several, and over memory and disk.

Its hooks bring every part's input to where the part computes, and weights that are kept in memory or on the disk to the
device for as long as they are used. From outside the model stays on one device: token ids go to the first one, and
every block gets and gives hidden states there (`rejoined`), so that whoever reads or changes them need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from latentbench.core.errors import InvalidInput

if TYPE_CHECKING:
    import torch

Place = Annotated[str, Field(pattern=r"^(cpu|disk|cuda(:\d{1,3})?)$")]
"""Where a part is kept: `cuda:1`, or in memory (`cpu`) or on the disk until it is used."""
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, Place]
"""A strategy of accelerate's, or a map from module names (`model.layers.3`; `""` is the model) to places."""


def loading_options(
    device_map: DeviceMap | None, device: torch.device, skeleton: torch.nn.Module, folder: str
) -> dict[str, Any]:
    """What transformers is told about where to put the weights; nothing where they all go to one device.

    `skeleton`: the model without weights; `folder`: for weights that are kept on the disk. Raises InvalidInput for a map that does not fit the model or this machine.
    """
    if device_map is None:
        return {}
    options: dict[str, Any] = {"device_map": device_map, "offload_folder": folder}
    if isinstance(device_map, Mapping):
        _check_map(device_map, device, skeleton)
    elif device.type == "cpu":
        from accelerate.utils import get_max_memory

        options["max_memory"] = {place: size for place, size in get_max_memory().items() if not isinstance(place, int)}
    return options


def _check_map(device_map: Mapping[str, str], device: torch.device, skeleton: torch.nn.Module) -> None:
    import torch

    modules = {name for name, _ in skeleton.named_modules()}
    if strange := sorted(set(device_map) - modules):
        some = ", ".join(sorted(modules - {""})[:3])
        raise InvalidInput(f"device_map: the model has no part {strange[0]!r}; its parts are called {some} and so on")
    homeless = [name for name, _ in skeleton.named_parameters() if not any(_holds(part, name) for part in device_map)]
    if homeless:
        raise InvalidInput(f'device_map says nothing of {homeless[0]!r}; name it or a part that holds it ("" is all)')
    for place in sorted({*device_map.values()} - {"cpu", "disk"}):
        if device.type != "cuda":
            raise InvalidInput(f"device_map: {place} is a GPU, but the cell runs on {device}; use --device cuda")
        if int(place.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise InvalidInput(
                f"device_map: {place} is not here; this torch sees {torch.cuda.device_count()} CUDA devices"
            )


def _holds(part: str, name: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def rejoined(model: torch.nn.Module) -> torch.device:
    """Has every block of a spread model give its output back to where its input came from; the device of token ids."""
    from accelerate.hooks import AlignDevicesHook

    from latentbench.activations.blocks import decoder_blocks, input_device

    for block in decoder_blocks(model):
        if isinstance(hook := getattr(block, "_hf_hook", None), AlignDevicesHook):
            hook.io_same_device = True
    return input_device(model)
