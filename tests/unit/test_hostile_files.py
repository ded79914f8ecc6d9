"""Files of others, and our own after an accident: read as what they are or refused with one clear error, nothing is run."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentbench.core.errors import LatentbenchError, RefusedFile
from latentbench.core.paths import Roots
from latentbench.exchange.importing import import_files
from latentbench.interventions.vectors import SteeringVectors, read_vectors, write_vectors
from latentbench.leaderboard.api import leaderboard
from latentbench.records.record import Record
from latentbench.records.results import read_record
from latentbench.sae import artifact
from latentbench.sae.options import TopKOptions
from latentbench.sae.sources.native import NativeSource
from latentbench.store.files import read_arrays, read_json, write_arrays
from latentbench.store.store import MANIFEST, Store
from latentbench.study.storage import read_content, write_content
from latentbench_adapters.datasets import FilesDataset
from latentbench_adapters.dictionary_learning import DictionaryLearningSource
from latentbench_adapters.model_files import folder_facts
from latentbench_adapters.sae_lens.export import export
from latentbench_adapters.sae_lens.source import SaeLensSource
from latentbench_adapters.sparsify import SparsifySource
from tests.support.damaged import (
    BOMBS,
    gguf_lies,
    payloads,
    safetensors_lies,
    torn,
    torn_archive,
    torn_json,
    torn_table,
)
from tests.support.foreign import LM_EVAL, SAE_LENS, SAEBENCH
from tests.support.opened import opened_below
from tests.support.saebench import LAYOUTS
from tests.support.saes import D_IN, WIDTH, K, built
from tests.support.saes import random as random_weights
from tests.unit.leaderboard_factory import rewritten

Count = Callable[[str, object], None]
RECORDS = Path(__file__).parents[2] / "results/records"


@dataclass(frozen=True)
class Reader:
    """Something that reads files, a way to write sound ones, and which of them to damage."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    files: tuple[str, ...]


def _topk(folder: Path) -> None:
    artifact.save(
        built(TopKOptions(width=WIDTH, k=K)), TopKOptions(width=WIDTH, k=K), D_IN, folder / "sae", {"curve": []}
    )


def _sparsify(folder: Path) -> None:
    weights = random_weights(encoder__weight=(WIDTH, D_IN), encoder__bias=(WIDTH,), W_dec=(WIDTH, D_IN), b_dec=(D_IN,))
    (folder / "sae").mkdir()
    save_file(weights, folder / "sae/sae.safetensors")
    config = {"d_in": D_IN, "num_latents": WIDTH, "k": K, "activation": "topk", "normalize_decoder": True}
    (folder / "sae/cfg.json").write_text(json.dumps(config))


def _dictionary_learning(folder: Path) -> None:
    weights = random_weights(
        encoder__weight=(WIDTH, D_IN), encoder__bias=(WIDTH,), decoder__weight=(D_IN, WIDTH), bias=(D_IN,)
    )
    (folder / "sae").mkdir()
    torch.save(weights, folder / "sae/ae.pt")
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D_IN, "dict_size": WIDTH, "layer": 1, "lm_name": "x"}
    (folder / "sae/config.json").write_text(json.dumps({"trainer": trainer}))


def _vectors(name: str) -> Callable[[Path], None]:
    return lambda folder: write_vectors(SteeringVectors({1: torch.ones(4), 2: torch.arange(4.0)}), folder / name)


def _record(folder: Path) -> None:
    source = next(RECORDS.rglob("*.json"))
    shutil.copy(source, folder / "record.json")
    statistics = source.with_suffix(".safetensors")
    shutil.copy(statistics, folder / statistics.name)


def _whole(record: Record) -> Record:
    if record.status == "damaged":
        raise RefusedFile(str(record.error))
    return record


def _source(source: type[Any]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        made, roots = source(path="sae"), Roots(folder)
        return made.identity(roots), made.facts(roots), made.load(roots)

    return read


def _results(data: Any) -> Reader:
    """A result of another tool that is imported together with a sound one: both or none."""

    def write(folder: Path) -> None:
        for name, content in (("sound.json", SAEBENCH), ("result.json", data)):
            (folder / name).write_text(json.dumps(content))

    def read(folder: Path) -> object:
        results = folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        try:
            made = import_files(results, [folder / "sound.json", folder / "result.json"])
        except LatentbenchError:
            assert not list(results.rglob("*.json"))
            raise
        kept = [read_record(item.path).model_copy(update={"digest": None}) for item in made]
        assert kept == [item.record for item in made]
        return made

    return Reader(write, read, ("result.json",))


def _model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "num_hidden_layers": 2, "vocab_size": 9}))


READERS = {
    "record": Reader(_record, lambda folder: _whole(read_record(folder / "record.json")), ("record.json",)),
    "our JSON": Reader(_record, lambda folder: read_json(folder / "record.json"), ("record.json",)),
    "statistics": Reader(
        lambda folder: write_arrays(folder / "x.safetensors", {"a": np.ones(4), "b": np.zeros((2, 2))}),
        lambda folder: read_arrays(folder / "x.safetensors"),
        ("x.safetensors",),
    ),
    "stage": Reader(
        lambda folder: write_content(folder, {"a": torch.ones(3)}, {"skipped": 0}),
        read_content,
        ("content.safetensors", "content.json"),
    ),
    "native SAE": Reader(_topk, _source(NativeSource), ("sae/sae.safetensors", "sae/sae.json")),
    "stored SAE": Reader(_topk, lambda folder: artifact.load_training(folder / "sae"), ("sae/training.json",)),
    "sparsify": Reader(_sparsify, _source(SparsifySource), ("sae/sae.safetensors", "sae/cfg.json")),
    "dictionary_learning": Reader(
        _dictionary_learning, _source(DictionaryLearningSource), ("sae/ae.pt", "sae/config.json")
    ),
    "sae_lens": Reader(
        lambda folder: export(built(TopKOptions(width=WIDTH, k=K)), folder / "sae"),
        _source(SaeLensSource),
        ("sae/sae_weights.safetensors", "sae/cfg.json"),
    ),
    "vectors": Reader(
        _vectors("v.safetensors"), lambda folder: read_vectors(folder / "v.safetensors"), ("v.safetensors",)
    ),
    "GGUF": Reader(_vectors("v.gguf"), lambda folder: read_vectors(folder / "v.gguf"), ("v.gguf",)),
    "lm-eval vectors": Reader(_vectors("v.pt"), lambda folder: read_vectors(folder / "v.pt"), ("v.pt",)),
    "configuration": Reader(_model, folder_facts, ("config.json",)),
    "JSON Lines": Reader(
        lambda folder: (folder / "x.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n'),
        lambda folder: list(FilesDataset(path="x.jsonl").texts(Roots(folder))),
        ("x.jsonl",),
    ),
    **{f"SAEBench, {layout}": _results(data) for layout, data in LAYOUTS.items()},
    "sae-lens": _results(SAE_LENS),
    "lm-eval": _results(LM_EVAL),
}


SOURCES: dict[str, type[Any]] = {
    "native SAE": NativeSource,
    "sparsify": SparsifySource,
    "dictionary_learning": DictionaryLearningSource,
    "sae_lens": SaeLensSource,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_that_an_sae_is_read_from_is_in_its_identity(name: str, tmp_path: Path) -> None:
    READERS[name].write(tmp_path)
    source, roots = SOURCES[name](path="sae"), Roots(tmp_path)
    (tmp_path / "sae/README.md").write_text("words")
    identity = source.identity(roots)
    assert set(READERS[name].files) == {f"sae/{file}" for file in identity}
    with opened_below(tmp_path / "sae") as names:
        source.load(roots)
    assert names
    assert names <= identity.keys()
    for file in READERS[name].files:
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content + b" ")
        assert source.identity(roots) != identity
        (tmp_path / file).write_bytes(content)


def attempt(read: Callable[[], object]) -> bool:
    """Whether something could be read; what is raised must be an error for people."""
    try:
        read()
    except LatentbenchError:
        return False
    return True


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


@pytest.fixture(scope="module")
def sound(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound files."""
    folder = tmp_path_factory.mktemp("sound")
    reader.write(folder)
    assert attempt(lambda: reader.read(folder))
    return folder


STRUCTURED = {".json": torn_json, ".safetensors": torn_table, ".pt": torn_archive}
"""Damage after which the file is still of its format."""


def fuzz(reader: Reader, sound: Path, times: int, count: Count) -> None:
    """Damages one file at a time and reads it."""
    generator, refused = random.Random(times), 0
    originals = {name: (sound / name).read_bytes() for name in reader.files}
    for number in range(times):
        name = reader.files[number % len(reader.files)]
        structured = STRUCTURED.get(Path(name).suffix) if number % 3 else None
        (sound / name).write_bytes((structured or torn)(originals[name], generator))
        started = time.perf_counter()
        refused += not attempt(lambda: reader.read(sound))
        assert time.perf_counter() - started < 20
        (sound / name).write_bytes(originals[name])
    count("files", times)
    count("refused", refused)
    assert refused > 0


def test_damaged_files_are_refused(reader: Reader, sound: Path, record_property: Count) -> None:
    fuzz(reader, sound, 40, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_damaged_files_are_refused(reader: Reader, sound: Path, record_property: Count) -> None:
    fuzz(reader, sound, 1000, record_property)


def test_bombs_are_refused(reader: Reader, sound: Path) -> None:
    bombs = {**BOMBS, **safetensors_lies(), **gguf_lies()}
    for name in reader.files:
        original = (sound / name).read_bytes()
        for title, content in bombs.items():
            (sound / name).write_bytes(content)
            started = time.perf_counter()
            attempt(lambda: reader.read(sound))
            assert time.perf_counter() - started < 20, title
        (sound / name).write_bytes(original)


@pytest.mark.parametrize("lie", safetensors_lies())
def test_headers_that_lie_are_refused(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_lies()[lie])
    if lie not in ("no tensors", "strange names"):
        for read in (read_arrays, SteeringVectors.load):
            assert not attempt(lambda read=read: read(path))  # type: ignore[misc]


@pytest.mark.parametrize("lie", gguf_lies())
def test_gguf_files_that_lie_are_refused_at_once(tmp_path: Path, lie: str) -> None:
    path, started = tmp_path / "x.gguf", time.perf_counter()
    path.write_bytes(gguf_lies()[lie])
    with pytest.raises(RefusedFile):
        read_vectors(path)
    assert time.perf_counter() - started < 10


def test_nothing_in_a_pickle_is_run(tmp_path: Path, record_property: Count) -> None:
    witness, made = tmp_path / "witness", tmp_path / "made"
    made.mkdir()
    _dictionary_learning(tmp_path)
    files = payloads(made, witness)
    for path in files:
        with pytest.raises(RefusedFile):
            read_vectors(path)
        shutil.copy(path, tmp_path / "sae/ae.pt")
        with pytest.raises(RefusedFile):
            DictionaryLearningSource(path="sae").load(Roots(tmp_path))
    assert not witness.exists()
    record_property("payloads", len(files))


def test_records_with_escapes_and_html_stay_data(tmp_path: Path) -> None:
    """Whoever sends records for a table can put anything into their names."""
    source = next(RECORDS.rglob("*.json"))
    record = json.loads(source.read_text())
    evil = "\x1b]0;x\x07\x9b2J</script><img src=x onerror=alert(1)>\u202e"
    record["label"] = record["spec"]["name"] = record["spec"]["path"] = evil
    record["warnings"] = [evil]
    record["cell"] = "e" * 64
    target = tmp_path / "records/mine"
    target.mkdir(parents=True)
    statistics = source.with_suffix(".safetensors")
    shutil.copy(statistics, target / statistics.name)
    (target / "x.json").write_text(json.dumps(record))
    rewritten(target / "x.json")
    assert read_record(target / "x.json").status == "ok"
    for form in ("terminal", "md", "html", "json"):
        shown = leaderboard(tmp_path, format=form)  # type: ignore[arg-type]
        assert form != "html" or "<img src" not in shown
        assert "\x1b" not in shown
        assert form not in ("terminal", "md") or "\x9b" not in shown  # elsewhere it steers nothing


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "..", "\x00", "x" * 300])
def test_manifests_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with store.writing("sae", "ab" * 32, {}) as folder:
        (folder / "x").write_text("x")
    manifest = store.folder("sae", "ab" * 32) / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"] = {name: {"bytes": 1, "sha256": "0" * 64}}
    manifest.write_text(json.dumps(content))
    assert store.get("sae", "ab" * 32) is None


def test_links_in_folders_of_saes_are_no_way_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    _topk(outside)
    project = tmp_path / "project"
    project.mkdir()
    (project / "sae").symlink_to(outside / "sae")
    for source in (NativeSource, SparsifySource, DictionaryLearningSource, SaeLensSource):
        with pytest.raises((LatentbenchError, ValueError)):
            source(path="sae").load(Roots(project))
        with pytest.raises((LatentbenchError, ValueError)):
            source(path="../outside/sae").identity(Roots(project))
