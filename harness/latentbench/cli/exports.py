"""Verbs that take things out of the store: export for SAEs, export-vectors for steering vectors."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentbench.cli.options import CellArgument, FolderOptions, say, with_option_groups
from latentbench.core.errors import InvalidInput, NotAvailable

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.core.protocols import ModelAdapter
    from latentbench.execute.sae_loading import StoredSae
    from latentbench.interventions.vectors import SteeringVectors
    from latentbench.records.record import Record
    from latentbench.sae.sources.base import SaeOrigin
    from latentbench.spec.experiment import Experiment
    from latentbench.spec.project import Project
    from latentbench.steering.method import SteeringMethod


@with_option_groups
def export(
    cell: CellArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist yet.")],
    to: Annotated[
        Literal["sae_lens", "latentbench", "huggingface"],
        typer.Option(
            help="sae_lens: for sae_lens.SAE.load_from_disk; latentbench: for `load:` in another spec; "
            "huggingface: a model folder in either format with a card of what was measured."
        ),
    ] = "sae_lens",
    *,
    folders: FolderOptions,
) -> None:
    """Write the SAE of a finished cell to a folder that other tools, or other specs, can load.

    Example: `latentbench export 'quickstart/topk[sae.k=8][0]' --output exports/topk-8`
    """
    from latentbench.report.cells import experiment_of, record_of, stored_sae

    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another folder")
    project = folders.project()
    record = record_of(project.results, cell)
    experiment = experiment_of(record)
    stored = stored_sae(record, experiment, project)
    origin = _origin(record, experiment, project.roots)
    if to == "huggingface":
        _to_huggingface(stored, output, origin, record)
    else:
        (_to_sae_lens if to == "sae_lens" else _to_latentbench)(stored, output, origin)


def _origin(record: Record, experiment: Experiment, roots: Roots) -> SaeOrigin:
    from latentbench.sae.sources.base import SaeOrigin

    model, train = experiment.model, experiment.dataset.train
    return SaeOrigin(
        model=_model_name(model),
        site=experiment.sites[0],
        hook_module=model.hook_module(roots, experiment.sites[0]),
        context=train.context if train else None,
        cell=record.cell,
    )


def _model_name(model: ModelAdapter) -> str:
    """The model's id; of a folder elsewhere on this machine only its name, written as a path: no model of the hub is meant."""
    name = str(getattr(model, "id", model.adapter))
    return f"./{Path(name).name}" if name.startswith(("/", "~")) else name


def _to_sae_lens(stored: StoredSae, output: Path, origin: SaeOrigin) -> None:
    from latentbench.sae.sources.base import sae_lens_format

    done = sae_lens_format().save(stored.sae, output, origin)
    say(f"wrote {output}: {done.architecture}, {done.equivalence}")
    if done.needs_import:
        say(f"sae-lens reads it after `import {done.needs_import}`")


def _to_latentbench(stored: StoredSae, output: Path, origin: SaeOrigin) -> None:
    from latentbench.execute.sae_loading import save_stored
    from latentbench.sae.options.base import LoadedSae
    from latentbench.sae.sources.native import ORIGIN
    from latentbench.store.files import new_folder, write_json

    if isinstance(stored.section, LoadedSae):
        raise InvalidInput("a loaded SAE has no latentbench options to save; use --to sae_lens")
    with new_folder(output) as draft:
        save_stored(stored, draft)
        write_json(draft / ORIGIN, origin.fields())
    say(f"wrote {output}: {stored.section.variant}, exact; load it with {{adapter: latentbench, path: …}}")


def _to_huggingface(stored: StoredSae, output: Path, origin: SaeOrigin, record: Record) -> None:
    """Nothing is uploaded: the folder is what `hf upload` takes."""
    from latentbench.exchange.exporting import card
    from latentbench.records.integrity import sealed
    from latentbench.store.files import new_folder, write_bytes, write_json

    with new_folder(output) as draft:
        loading = _weights(stored, draft, origin)
        write_bytes(draft / "README.md", card(record, origin.model or "unknown", loading).encode())
        write_json(draft / "record.json", sealed(record))
    say(f"wrote {output}; upload it with `hf upload YOUR/NAME {output}`")


def _weights(stored: StoredSae, folder: Path, origin: SaeOrigin) -> str:
    """Writes the weights in sae-lens' format, or ours where that has no equivalent; returns how to load them."""
    from latentbench.sae.sources.base import sae_lens_format

    sae_lens = sae_lens_format()
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        place = Path(beside) / "sae"
        try:
            done = sae_lens.save(stored.sae, place, origin)
            first = f"import {done.needs_import}  # registers the class\n" if done.needs_import else ""
            loading = f'{first}from sae_lens import SAE\n\nsae = SAE.load_from_disk("path/to/this/folder")'
        except InvalidInput:
            _to_latentbench(stored, place, origin)
            loading = (
                "from pathlib import Path\n\nfrom latentbench.sae.sources.native import load_folder  # pip install latentbench\n\n"
                'sae = load_folder(Path("path/to/this/folder"))'
            )
        for path in place.iterdir():
            shutil.move(path, folder / path.name)
    return loading


@with_option_groups
def export_vectors(
    cell: CellArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .safetensors (latentbench), .gguf (repeng; llama.cpp without layer 0) or .pt (lm-eval); it must not "
            "exist yet.",
        ),
    ],
    folders: FolderOptions,
) -> None:
    """Write the steering vectors of a finished cell, multiplied by its scale, to a file that other tools read.

    Example: `latentbench export-vectors 'papers/steering_vectors/pocket[all][0]' --output exports/all.gguf`
    """
    from latentbench.interventions.vectors import write_vectors
    from latentbench.report.cells import cell_of

    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another file")
    project = folders.project()
    record = cell_of(project.results, cell)
    experiment, method = _steered(record, cell)
    vectors = _vectors(record, experiment, method, project)
    write_vectors(vectors, output, _blocks(experiment, project.roots))
    say(f"wrote {output}: {len(vectors.layers)} vectors, {vectors.d_model} wide, sha256 {vectors.digest[:12]}")
    if output.suffix == ".gguf" and 0 in vectors.layers:
        say("llama.cpp will refuse this file, since it knows no direction of layer 0; repeng reads it")
    if method.scope != "all":
        say(f"the cell adds them at the tokens in scope {method.scope!r} only, which the file cannot say")


def _steered(record: Record, wanted: str) -> tuple[Experiment, SteeringMethod]:
    from latentbench.report.cells import experiment_of
    from latentbench.steering.method import SteeringMethod

    experiment = experiment_of(record)
    if not isinstance(experiment.steering, SteeringMethod) or "subject" not in record.keys:
        raise InvalidInput(f"{wanted} steers nothing, so there are no vectors to export")
    return experiment, experiment.steering


def _vectors(record: Record, experiment: Experiment, method: SteeringMethod, project: Project) -> SteeringVectors:
    from dataclasses import replace

    from latentbench.interventions.vectors import model_tag
    from latentbench.steering.build import vectors_in
    from latentbench.store.store import Store
    from latentbench.study.storage import stored_content

    content = stored_content(Store(project.store), "subject", record.keys["subject"])
    if content is None:
        raise NotAvailable("the vectors are not in the store; run the spec again to make them")
    if "residual_norms" not in content.meta:
        raise InvalidInput(f"{method.method} is no set of vectors, so there are none to export")
    vectors = vectors_in(content, model_tag(experiment.model.identity(project.roots)))
    return replace(vectors, vectors=vectors.scaled(method.scale, method.relative))


def _blocks(experiment: Experiment, roots: Roots) -> str:
    """How the list of blocks is called below the base model, e.g. `layers` of `model.layers.0`."""
    from latentbench.core.sites import Site

    path = experiment.model.hook_module(roots, Site(index=0)) or "model.layers.0"
    return path.partition(".")[2].rpartition(".")[0] or "layers"
