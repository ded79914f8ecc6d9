"""Files of steering vectors that a spec names: inside the project, of the cell's model, and never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentbench.lab import Lab
    from latentbench.steering.vectors import SteeringVectors
    from latentbench_adapters.protocols import Roots


def vector_file(path: str, roots: Roots) -> Path:
    """The file meant by `path`. Raises InvalidInput when it leaves the project, NotAvailable when it is not there."""
    from latentbench.errors import InvalidInput, NotAvailable

    try:
        found = roots.resolve(path)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if not found.is_file():
        raise NotAvailable(f"there is no file {path!r} (paths are relative to the project)")
    return found


def vectors_from(path: str, lab: Lab, other_model: bool = False) -> SteeringVectors:
    """Its vectors. Raises RefusedFile for a malformed or unsafe file and, unless `other_model`, for another model's;
    InvalidInput where they do not fit the lab's model."""
    from latentbench.steering.formats import read_vectors
    from latentbench.steering.vectors import model_tag

    vectors = read_vectors(vector_file(path, lab.roots))
    if not other_model:
        vectors.made_for(model_tag(lab.experiment.model.identity(lab.roots)), path)
    vectors.check(lab.model().model)
    return vectors
