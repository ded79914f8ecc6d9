"""A plug-in for tests: TopK that breaks in mid-training in the way a file beside it says.

Installed by copying it into a folder of PYTHONPATH together with a `dist-info`. The fault is not part of any identity.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from latentbench.sae.options import TopKOptions

FAULT = Path(__file__).with_name("fault.json")


class FaultyOptions(TopKOptions):
    """TopK with a fault."""

    implementation: ClassVar[str] = "faulty:build"
    variant: Literal["faulty"] = "faulty"  # type: ignore[assignment]


def build(options: FaultyOptions, d_in: int, generator: Any, *bases: Any) -> Any:
    """The torch side; imports torch only when asked for."""
    from latentbench.sae.variants.topk import TopK

    class Faulty(TopK):
        def loss(self, x: Any, dead: Any, step: int, steps: int) -> Any:
            strike(options.k, step)
            return super().loss(x, dead, step, steps)

    return Faulty(options, d_in, generator, *bases)


def strike(k: int, step: int) -> None:
    """Does what `fault.json` says when it is about this SAE and step."""
    fault = json.loads(FAULT.read_text()) if FAULT.is_file() else {}
    if fault.get("k") != k or step < fault["step"]:
        return
    if fault["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault["do"] == "deaf":  # to everything but SIGKILL
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    if fault["do"] == "raise":
        raise RuntimeError("a fault on purpose")
    if fault["do"] == "exit":
        os._exit(7)
    if fault["do"] == "memory":
        fault["held"] = bytearray(os.urandom(1 << 20) * 4096)
    FAULT.with_name("reached").touch()
    while FAULT.is_file():  # hangs until the fault is removed
        time.sleep(0.02)
