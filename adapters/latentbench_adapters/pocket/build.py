"""Rebuild the pocket model from nothing: ``python -m latentbench_adapters.pocket.build``."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from latentbench_adapters.pocket.recipe import Recipe
from latentbench_adapters.pocket.tokenizer import train_tokenizer
from latentbench_adapters.pocket.train import train

MODEL_FOLDER = Path(__file__).parent / "model"


def build(recipe: Recipe, output: Path, checkpoints: Path, resume: bool = False) -> None:
    """Tokenizer, training, export, measurement and model card, in this order."""
    tokenizer = train_tokenizer(recipe)
    checkpoints.mkdir(parents=True, exist_ok=True)
    model = train(recipe, tokenizer, checkpoints, resume)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # Imported late, so that a long training does not depend on what only its last minute needs.
    from latentbench_adapters.pocket.card import write_card
    from latentbench_adapters.pocket.measure import measure

    write_card(output, recipe, measure(output))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m latentbench_adapters.pocket.build", description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimiser updates (default %(default)s)")
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER, help="where the finished model goes")
    parser.add_argument("--checkpoints", type=Path, help="where the run can be resumed from (default: a temp folder)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Parse the command line and build."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    folder = arguments.checkpoints or Path(tempfile.gettempdir()) / "latentbench-pocket"
    build(dataclasses.replace(Recipe(), steps=arguments.steps), arguments.output, folder, arguments.resume)


if __name__ == "__main__":
    main()
