"""A project in which every adapter finds what its example names."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.core.paths import Roots
from tests.support.packages import install
from tests.support.project import Workbench


@pytest.fixture
def roots(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    for file in ("sparsify/cfg.json", "learning/config.json", "ours/sae.json"):
        bench.write(f"saes/{file}", "{}")
    for file in ("sparsify/sae.safetensors", "learning/ae.pt", "ours/sae.safetensors"):
        bench.write(f"saes/{file}", file)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "some-texts", "1.0", {"some_texts/a.csv": b"text,target\none,0\ntwo,1\n"})
    return bench.project.roots
