"""The steering vectors of a finished cell as one file: for latentbench, repeng and llama.cpp, or lm-eval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.interventions.vectors import SteeringVectors, model_tag, write_vectors
from latentbench.records.record import Record
from latentbench.report.cells import cell_of, experiment_of
from latentbench.spec.experiment import Experiment
from latentbench.spec.project import Project
from latentbench.steering.build import at_dose, vectors_in
from latentbench.steering.method import SteeringMethod
from latentbench.store.store import Store
from latentbench.study.storage import stored_content


def export_vectors(project: Project, wanted: str, output: Path) -> list[str]:
    """Writes the vectors of the cell `wanted`, multiplied by its scale, to the new file `output`; returns lines to
    show.

    The suffix of `output` says the format. Raises InvalidInput when the file exists, `wanted` is not one cell or steers
    without vectors; NotAvailable when the vectors are no longer in the store.
    """
    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another file")
    record = cell_of(project.results, wanted)
    experiment = experiment_of(record)
    method = experiment.steering
    if not isinstance(method, SteeringMethod) or "subject" not in record.keys:
        raise InvalidInput(f"{wanted} steers nothing, so there are no vectors to export")
    vectors = _scaled_vectors(record, experiment, method, project)
    write_vectors(vectors, output, _name_of_blocks(experiment, project.roots))
    lines = [f"wrote {output}: {len(vectors.layers)} vectors, {vectors.d_model} wide, sha256 {vectors.digest[:12]}"]
    if output.suffix == ".gguf" and 0 in vectors.layers:
        lines.append("llama.cpp will refuse this file, since it knows no direction of layer 0; repeng reads it")
    if method.scope != "all":
        lines.append(f"the cell adds them at the tokens in scope {method.scope!r} only, which the file cannot say")
    if stated := [name for name in ("positions", "keep_norm") if name in method.stated_use()]:
        lines.append(f"the cell uses them with {' and '.join(map(repr, stated))}, which the file cannot say")
    return lines


def _scaled_vectors(
    record: Record, experiment: Experiment, method: SteeringMethod, project: Project
) -> SteeringVectors:
    """The vectors as the cell adds them: other tools know no scale of ours, so it is multiplied into them."""
    content = stored_content(Store(project.store), "subject", record.keys["subject"])
    if content is None:
        raise NotAvailable("the vectors are not in the store; run the spec again to make them")
    # Only sets of vectors have these norms, and neither adapters nor prefixes; what is projected out is not added.
    if "residual_norms" not in content.meta or not method.adds_vectors:
        raise InvalidInput(f"{method.method} is no set of vectors, so there are none to export")
    method = method.settled(content)
    vectors = vectors_in(content, model_tag(experiment.model.identity(project.roots)))
    if method.dose is not None:
        vectors = at_dose(vectors, float(method.dose), content)
    return replace(vectors, vectors=vectors.scaled(method.factor, method.relative))


def _name_of_blocks(experiment: Experiment, roots: Roots) -> str:
    """How the list of blocks is called below the base model, e.g. `layers` of `model.layers.0`."""
    path = experiment.model.hook_module(roots, Site(index=0)) or "model.layers.0"
    return path.partition(".")[2].rpartition(".")[0] or "layers"
