"""A project in which every adapter finds what its example names."""

from __future__ import annotations

import pytest

from latentbench.core.paths import Roots
from tests.support.project import Workbench


@pytest.fixture
def roots(bench: Workbench) -> Roots:
    for file in ("sparsify/cfg.json", "learning/config.json", "ours/sae.json"):
        bench.write(f"saes/{file}", "{}")
    for file in ("sparsify/sae.safetensors", "learning/ae.pt", "ours/sae.safetensors"):
        bench.write(f"saes/{file}", file)
    return bench.project.roots
