"""The verb that takes steering vectors out of the store: export-vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Allow, Results, StoreFolder, project_of, say
from harness.errors import InvalidInput, NotAvailable, RefusedFile

if TYPE_CHECKING:
    from adapters.protocols import Roots
    from harness.project import Project
    from harness.record import Record
    from harness.spec.experiment import Experiment
    from harness.steering.options import SteeringMethod
    from harness.steering.vectors import SteeringVectors


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("export-vectors")(export_vectors)


def export_vectors(
    cell: Annotated[str, typer.Argument(help="A record: cell id, file, or spec-name[label][seed].")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .safetensors (latentbench), .gguf (repeng, llama.cpp) or .pt (lm-eval); it must not "
            "exist yet.",
        ),
    ],
    results: Results = None,
    store: StoreFolder = None,
    allow: Allow = None,
) -> None:
    """Write the steering vectors of a finished cell, multiplied by its scale, to a file that other tools read.

    Example: `latentbench export-vectors 'papers/steering_vectors/pocket[all][0]' --output exports/all.gguf`
    """
    from harness.steering.formats import write_vectors

    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another file")
    project = project_of(results, store, allow)
    record = _record(project.results, cell)
    experiment, method = _experiment(record, cell)
    vectors = _vectors(record, experiment, method, project)
    write_vectors(vectors, output, _blocks(experiment, project.roots))
    say(f"wrote {output}: {len(vectors.layers)} vectors, {vectors.d_model} wide, sha256 {vectors.digest[:12]}")
    if method.scope != "all":
        say(f"the cell adds them at the tokens in scope {method.scope!r} only, which the file cannot say")


def _record(results: Path, wanted: str) -> Record:
    from harness.leaderboard.load import load
    from harness.leaderboard.select import select

    side = select(load(results), wanted)
    if len(side.cells) > 1:
        seeds = ", ".join(str(found.record.seed) for found in side.cells)
        raise InvalidInput(f"{wanted} means several cells; say which seed, e.g. {side.name}[0] (seeds: {seeds})")
    return side.cells[0].record


def _experiment(record: Record, wanted: str) -> tuple[Experiment, SteeringMethod]:
    from pydantic import ValidationError

    from harness.spec.experiment import Experiment
    from harness.steering.options import SteeringMethod

    try:
        experiment = Experiment.model_validate_json(json.dumps(record.resolved), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedFile(f"this version cannot read the record's experiment: {where}: {first['msg']}") from None
    if not isinstance(experiment.steering, SteeringMethod) or "subject" not in record.keys:
        raise InvalidInput(f"{wanted} steers nothing, so there are no vectors to export")
    return experiment, experiment.steering


def _vectors(record: Record, experiment: Experiment, method: SteeringMethod, project: Project) -> SteeringVectors:
    from dataclasses import replace

    from harness.execute.stages import read_content
    from harness.lab import Content
    from harness.steering.making import vectors_in
    from harness.steering.vectors import model_tag
    from harness.store.store import Store

    found = Store(project.store).get("subject", record.keys["subject"])
    if found is None:
        raise NotAvailable("the vectors are not in the store; run the spec again to make them")
    content = Content(*read_content(found.folder))
    if "residual_norms" not in content.meta:
        raise InvalidInput(f"{method.method} is no set of vectors, so there are none to export")
    vectors = vectors_in(content, model_tag(experiment.model.identity(project.roots)))
    return replace(vectors, vectors=vectors.scaled(method.scale, method.relative))


def _blocks(experiment: Experiment, roots: Roots) -> str:
    """How the list of blocks is called below the base model, e.g. `layers` of `model.layers.0`."""
    from harness.activations.site import Site

    path = experiment.model.hook_module(roots, Site(index=0)) or "model.layers.0"
    return path.partition(".")[2].rpartition(".")[0] or "layers"
