"""The verb that takes steering vectors out of the store: export-vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentbench.cli.options import Allow, Results, StoreFolder, project_of, say
from latentbench.errors import InvalidInput, NotAvailable

if TYPE_CHECKING:
    from latentbench.project import Project
    from latentbench.record import Record
    from latentbench.spec.experiment import Experiment
    from latentbench.steering.options import SteeringMethod
    from latentbench.steering.vectors import SteeringVectors
    from latentbench_adapters.protocols import Roots


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
            help="File to write: .safetensors (latentbench), .gguf (repeng; llama.cpp without layer 0) or .pt (lm-eval); it must not "
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
    from latentbench.report.records import cell_of
    from latentbench.steering.formats import write_vectors

    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another file")
    project = project_of(results, store, allow)
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
    from latentbench.report.records import experiment_of
    from latentbench.steering.options import SteeringMethod

    experiment = experiment_of(record)
    if not isinstance(experiment.steering, SteeringMethod) or "subject" not in record.keys:
        raise InvalidInput(f"{wanted} steers nothing, so there are no vectors to export")
    return experiment, experiment.steering


def _vectors(record: Record, experiment: Experiment, method: SteeringMethod, project: Project) -> SteeringVectors:
    from dataclasses import replace

    from latentbench.execute.stages import stored_content
    from latentbench.steering.making import vectors_in
    from latentbench.steering.vectors import model_tag
    from latentbench.store.store import Store

    content = stored_content(Store(project.store), "subject", record.keys["subject"])
    if content is None:
        raise NotAvailable("the vectors are not in the store; run the spec again to make them")
    if "residual_norms" not in content.meta:
        raise InvalidInput(f"{method.method} is no set of vectors, so there are none to export")
    vectors = vectors_in(content, model_tag(experiment.model.identity(project.roots)))
    return replace(vectors, vectors=vectors.scaled(method.scale, method.relative))


def _blocks(experiment: Experiment, roots: Roots) -> str:
    """How the list of blocks is called below the base model, e.g. `layers` of `model.layers.0`."""
    from latentbench.activations.site import Site

    path = experiment.model.hook_module(roots, Site(index=0)) or "model.layers.0"
    return path.partition(".")[2].rpartition(".")[0] or "layers"
