"""Compiles the Triton kernels for GPUs that need not be there, and prints JSON: `python -m tests.support.compiled`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from latentbench.sae.sparse_kernels import dispatch

dispatch.backend(torch.ones(1)).decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
LIGHT = "triton" not in sys.modules
"""Whether training on a CPU gets by without importing Triton."""

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from latentbench.sae.sparse_kernels import triton_backend  # noqa: E402
from latentbench.sae.sparse_kernels.triton_backend import BLOCK_D, BLOCK_E, HELD, warps  # noqa: E402

LONG = {"indices", "rows", "starts", "slots", "low", "high"}
NUMBERS = {"active", "d", "count", "share_stride"}
KERNELS = (
    triton_backend.decode,
    triton_backend.decode_backward,
    triton_backend.encode_backward,
    triton_backend.prefix_losses,
    triton_backend.prefix_sums,
    triton_backend.add_sums,
)


class Setting(NamedTuple):
    """What a kernel is compiled for."""

    capability: int
    floats: str
    ones: bool = False
    """Whether d, A and the number of entries are 1, which Triton turns into constants."""


SETTINGS = (Setting(80, "fp32"), Setting(90, "fp32"), Setting(80, "fp64"), Setting(90, "fp32", ones=True))


def made(kernel: Any, setting: Setting) -> Any:
    """`kernel` as machine code, with the sizes of `triton_ops`."""
    sizes = {"block_d": 1 if setting.ones else BLOCK_D, "block_e": BLOCK_E, "per_token": HELD}
    if setting.ones:
        sizes |= {"active": 1, "d": 1, "count": 1}
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: "constexpr" if name in constants else kind(name, setting.floats) for name in kernel.arg_names}
    tile = sizes["block_d"] * constants.get("block_e", 1)
    options = {"num_warps": warps(tile), "enable_fp_fusion": True}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", setting.capability, 32), options=options)


def kind(name: str, floats: str) -> str:
    """The type of an argument in a signature."""
    return "i32" if name in NUMBERS else "*i64" if name in LONG else f"*{floats}"


def atomics(ptx: str) -> int:
    """Instructions that add without an order."""
    return sum(line.strip().startswith(("atom.", "red.")) for line in ptx.splitlines())


def results() -> Iterator[dict[str, Any]]:
    """Per kernel and setting: bytes of machine code, atomic instructions, and the target that the PTX names."""
    for setting in SETTINGS:
        for kernel in KERNELS:
            found = made(kernel, setting).asm
            target = next(line for line in found["ptx"].splitlines() if line.startswith(".target"))
            yield {
                "kernel": kernel.__name__,
                "setting": setting._asdict(),
                "bytes": len(found["cubin"]),
                "atomics": atomics(found["ptx"]),
                "target": target,
            }


if __name__ == "__main__":
    json.dump({"light": LIGHT, "results": list(results())}, sys.stdout)
