"""Import and export through the command line, on a small experiment that is really run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import Command
from tests.support.project import Workbench
from tests.unit.test_exchange import SAEBENCH

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ran(bench: Workbench, command: Command) -> Workbench:
    bench.spec("mine", metrics=["cross_entropy", "explained_variance", "l0"])
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    return bench


def test_a_model_folder_loads_in_sae_lens_and_its_card_has_the_numbers(ran: Workbench, command: Command) -> None:
    done = command("export", "mine", "--to", "huggingface", "--output", "out/card")
    assert done.code == 0, done.err
    folder = ran.root / "out/card"
    assert {"README.md", "record.json", "cfg.json", "sae_weights.safetensors"} <= {p.name for p in folder.iterdir()}
    from sae_lens import SAE

    loaded = SAE.load_from_disk(str(folder), device="cpu")
    assert loaded.W_dec.shape == (32, 16)
    (record,) = ran.records().values()
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: sae_lens\n")
    for metric in record.metrics:
        assert metric.value is None or f"{metric.id}@{metric.version}" in card
    assert json.loads((folder / "record.json").read_text())["cell"] == record.cell
    assert str(ran.root) not in card
    assert [p for p in folder.parent.iterdir() if p.name != "card"] == []
    assert torch.isfinite(loaded.W_dec).all()


def test_pages_curves_and_comparisons_are_written(ran: Workbench, command: Command) -> None:
    (record,) = ran.records().values()
    ran.write(f"pages/{record.cell}-latents.html", "<p>latents</p>")
    ran.write("pages/../pages/not-a-page.html", "")
    assert command("leaderboard", "--format", "html", "--output", "report.html").code == 0
    page = (ran.root / "report.html").read_text("utf-8")
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', page)[1])  # type: ignore[index]
    ((row, found),) = curves.items()
    assert found["seed 0"]["step"] == sorted(found["seed 0"]["step"])
    assert len(found["seed 0"]["normalised"]) == len(found["seed 0"]["step"]) > 1
    links = json.loads(re.search(r'id="pages">(.*?)</script>', page)[1])  # type: ignore[index]
    assert links == {row: [["latents", f"pages/{record.cell}-latents.html"]]}
    assert command("compare", "mine", "mine", "--format", "html", "--output", "compare.html").code == 0
    assert "No difference can be shown" in (ran.root / "compare.html").read_text("utf-8")


def test_a_page_without_a_store_has_no_curves(ran: Workbench, command: Command) -> None:
    assert command("leaderboard", "--format", "html", "--store", "elsewhere", "--output", "report.html").code == 0
    assert 'id="curves">{}</script>' in (ran.root / "report.html").read_text("utf-8")


def test_importing_and_exporting_through_the_command_line(bench: Workbench, command: Command) -> None:
    file = bench.write("bench.json", json.dumps(SAEBENCH))
    first, again = command("import", str(file)), command("import", str(file), "--json")
    assert first.code == again.code == 0, first.err
    assert first.out.startswith("imported  imported/saebench/")
    assert "mixes up" in first.err
    assert [item["new"] for item in json.loads(again.out)] == [False]
    assert "imported: saebench" in command("leaderboard").out
    assert command("leaderboard", "--format", "parquet").code == 2
    assert command("leaderboard", "--format", "parquet", "--output", "all.parquet").code == 0
    assert (bench.root / "all.parquet").read_bytes()[:4] == b"PAR1"
    done = command("leaderboard", "--format", "every-eval-ever", "--output", "eee")
    assert done.code == 0, done.err
    assert len(list((bench.root / "eee").iterdir())) == 1
    refused = command("import", str(bench.write("bad.json", "{}")))
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert Path(bench.root / "results/records/imported").is_dir()
