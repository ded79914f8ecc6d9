"""What latents of several sites respond to: from a file, or from autointerp studies of the same SAEs."""

from __future__ import annotations

import json
from pathlib import Path

from latentbench.errors import RefusedFile
from latentbench.leaderboard.load import load
from latentbench.project import Project
from latentbench.record import Record
from latentbench.report.choice import explained as sampled
from latentbench.report.sources import autointerp_of
from latentbench.store.store import Store

_MAX_BYTES = 64 << 20


def explained(record: Record, project: Project) -> dict[str, str]:
    """Explanations by `SITE:NUMBER` of latents of the record's SAEs, wherever other cells had them scored.

    SAEs are the same where their stages' keys are: a spec with `layer: 3` trains the SAE that a flow spec trains there.
    """
    site_of = {key: name.removeprefix("sae@") for name, key in record.keys.items() if name.startswith("sae@")}
    store, found = Store(project.store), dict[str, str]()
    for cell in load(project.results).loaded:
        site = site_of.get(cell.record.keys.get("sae", ""))
        if site and (details := autointerp_of(store, cell.record)):
            texts = {number: latent.explanation for number, latent in sampled(details).items()}
            found |= {f"{site}:{number}": text for number, text in texts.items() if text}
    return found


def read_explanations(path: Path) -> dict[str, str]:
    """A JSON object of texts by `SITE:NUMBER`. Raises RefusedFile for anything else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RefusedFile(f"{path.name} is larger than explanations can be")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedFile(f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RefusedFile(f'{path.name} holds no explanations: it must be {{"LAYER.POINT:NUMBER": "text", …}}')
    return found
