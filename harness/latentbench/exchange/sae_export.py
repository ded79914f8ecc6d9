"""The SAE of a finished cell as a folder: in sae-lens' format, in latentbench's own, or as a model folder for the hub.

Each function writes a new folder, whole or not at all, and returns what to tell whoever asked for it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelAdapter
from latentbench.exchange.exporting import card
from latentbench.execute.sae_loading import StoredSae
from latentbench.records.integrity import sealed
from latentbench.records.record import Record
from latentbench.report.cells import experiment_of, record_of, stored_sae
from latentbench.sae import artifact
from latentbench.sae.options import Variant
from latentbench.sae.sources.base import SaeOrigin, sae_lens_format
from latentbench.sae.sources.native import ORIGIN, load_base
from latentbench.spec.experiment import Experiment
from latentbench.spec.project import Project
from latentbench.store.files import new_folder, write_bytes, write_json

SaeTarget = Literal["sae_lens", "latentbench", "huggingface"]
_LOADED_BY_SAE_LENS = 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("path/to/this/folder")'
_LOADED_BY_LATENTBENCH = (
    "from pathlib import Path\n\nfrom latentbench.sae.sources.native import load_folder  # pip install latentbench\n\n"
    'sae = load_folder(Path("path/to/this/folder"))'
)


def export_sae(project: Project, wanted: str, to: SaeTarget, output: Path) -> list[str]:
    """Writes the SAE of the cell `wanted` to the new folder `output`; returns lines to show.

    Raises InvalidInput when `output` exists, `wanted` is not one cell, or the format has no equivalent of the SAE;
    NotAvailable when the SAE is no longer in the store; RefusedFile when the record or the SAE's source cannot be
    relied on; StoreError when the disk refuses.
    """
    if output.exists():
        raise InvalidInput(f"{output} exists already; choose another folder")
    record = record_of(project.results, wanted)
    experiment = experiment_of(record)
    stored, origin = stored_sae(record, experiment, project), _origin_of(record, experiment, project.roots)
    if to == "sae_lens":
        return _to_sae_lens(stored, output, origin)
    return _to_latentbench(stored, output, origin) if to == "latentbench" else _to_hub(stored, output, origin, record)


def save_stored(stored: StoredSae, folder: Path) -> None:
    """Writes the SAE as a folder that `load: {adapter: latentbench}` reads, its bases as folders `base0`, … in it.

    A loaded base is written in sae-lens' format. Raises InvalidInput where that has no equivalent.
    """
    assert isinstance(stored.section, Variant)  # a loaded SAE has no options to save
    for number, base in enumerate(stored.bases):
        below = folder / f"base{number}"
        if isinstance(base.section, Variant):
            save_stored(base, below)
        else:
            sae_lens_format().save(base.sae, below)
    # An SAE names its bases by their digests, and a base in another format need not have the digest it had in memory.
    bases = tuple(load_base(folder / f"base{number}") for number in range(len(stored.bases)))
    artifact.save(stored.sae, stored.section, stored.sae.d_in, folder, stored.training, bases)


def _to_sae_lens(stored: StoredSae, output: Path, origin: SaeOrigin) -> list[str]:
    done = sae_lens_format().save(stored.sae, output, origin)
    hint = [f"sae-lens reads it after `import {done.needs_import}`"] if done.needs_import else []
    return [f"wrote {output}: {done.architecture}, {done.equivalence}", *hint]


def _to_latentbench(stored: StoredSae, output: Path, origin: SaeOrigin) -> list[str]:
    if not isinstance(stored.section, Variant):
        raise InvalidInput("a loaded SAE has no latentbench options to save; use --to sae_lens")
    with new_folder(output) as draft:
        save_stored(stored, draft)
        write_json(draft / ORIGIN, origin.fields())
    return [f"wrote {output}: {stored.section.variant}, exact; load it with {{adapter: latentbench, path: …}}"]


def _to_hub(stored: StoredSae, output: Path, origin: SaeOrigin, record: Record) -> list[str]:
    """Nothing is uploaded: the folder is what `hf upload` takes."""
    with new_folder(output) as draft:
        loading = _write_weights(stored, draft, origin)
        write_bytes(draft / "README.md", card(record, origin.model or "unknown", loading).encode())
        write_json(draft / "record.json", sealed(record))
    return [f"wrote {output}; upload it with `hf upload YOUR/NAME {output}`"]


def _write_weights(stored: StoredSae, folder: Path, origin: SaeOrigin) -> str:
    """Writes the weights in sae-lens' format, or ours where that has no equivalent; returns the code that loads
    them."""
    # Both formats write a folder of their own, so it is made beside the one that is being filled and emptied into it.
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        place = Path(beside) / "sae"
        try:
            done = sae_lens_format().save(stored.sae, place, origin)
            first = f"import {done.needs_import}  # registers the class\n" if done.needs_import else ""
            loading = first + _LOADED_BY_SAE_LENS
        except InvalidInput:
            _to_latentbench(stored, place, origin)
            loading = _LOADED_BY_LATENTBENCH
        for path in place.iterdir():
            shutil.move(path, folder / path.name)
    return loading


def _origin_of(record: Record, experiment: Experiment, roots: Roots) -> SaeOrigin:
    model, train = experiment.model, experiment.dataset.train
    return SaeOrigin(
        model=_model_name(model),
        site=experiment.sites[0],
        hook_module=model.hook_module(roots, experiment.sites[0]),
        context=train.context if train else None,
        cell=record.cell,
    )


def _model_name(model: ModelAdapter) -> str:
    """The model's id; of a folder elsewhere on this machine only its name, written as a path: no model of the hub is
    meant."""
    name = model.label
    return f"./{Path(name).name}" if name.startswith(("/", "~")) else name
