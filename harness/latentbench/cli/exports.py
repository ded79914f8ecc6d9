"""Verbs that take things out of the store: export for SAEs, export-vectors for steering vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentbench.cli.options import CellArgument, FolderOptions, say, with_option_groups


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
    from latentbench.exchange.sae_export import export_sae

    for line in export_sae(folders.project(), cell, to, output):
        say(line)


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
    from latentbench.exchange import vector_export

    for line in vector_export.export_vectors(folders.project(), cell, output):
        say(line)
