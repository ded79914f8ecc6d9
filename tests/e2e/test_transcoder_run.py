"""A spec with a transcoder: trained, stored, loaded and measured at both sides of an MLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentbench.sae import artifact
from latentbench.sae.variants.transcoder import Transcoder
from tests.conftest import Command
from tests.support.project import Workbench

TRANSCODER = {"variant": "transcoder", "width": 32, "k": 4, "skip": True}


def test_a_transcoder_is_trained_stored_and_measured(bench: Workbench, command: Command) -> None:
    metrics = ["explained_variance", "cross_entropy", "l0", "cost"]
    bench.spec("pair", sae=TRANSCODER, layer="1.mlp", metrics=metrics, training__lr=2e-2)
    done = command("run", "pair", "--executor", "inline")
    assert done.code == 0, done.err
    found = {value.id: value.value for value in bench.records()["pair[][0]"].metrics}
    assert 0 < found["l0"] <= 4
    assert min(value for name, value in found.items() if name.startswith("explained_variance")) > 0
    assert found["cross_entropy.increase"] is not None
    (folder,) = {path.parent for path in (bench.root / "results/store/objects/sae").rglob("sae.json")}
    sae = artifact.load(folder)
    assert isinstance(sae, Transcoder)
    assert torch.equal(sae.gains, torch.ones(2))
    assert sae.W_skip is not None
    assert sae.W_skip.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": 1}, "the variant 'transcoder' reads an MLP: write `layer: 1.mlp`"),
        (
            {"layer": "1.mlp", "sae": {"variant": "topk", "width": 8, "k": 2}},
            "reads one hidden state: write `layer: 1.mlp_out`",
        ),
        ({"layer": "1.mlp", "metrics": ["absorption"]}, "reads SAEs; a transcoder has none of its numbers"),
    ],
)
def test_where_transcoders_stand_is_checked(
    bench: Workbench, command: Command, changes: dict[str, Any], said: str
) -> None:
    bench.spec("pair", **{"sae": TRANSCODER, **changes})
    done = command("validate", "pair")
    assert done.code != 0
    assert said in done.out + done.err
