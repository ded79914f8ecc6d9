"""`latentbench bench`: measurements of latentbench itself and of small experiments; ratios of one run, never absolute."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import AsJson, print_json

app = typer.Typer(help="Measure speed, and small experiments without a language model.", no_args_is_help=True)


@app.command()
def train(rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5, as_json: AsJson = False) -> None:
    """Time training steps against sae-lens' TopK, interleaved in one process.

    Example: `latentbench bench train --rounds 3`
    """
    from dataclasses import asdict

    from harness.bench.train import SHAPES, compare

    timings = [timing for shape in SHAPES for timing in compare(shape, rounds)]
    if as_json:
        print_json([asdict(timing) for timing in timings])
        return
    typer.echo("d_in  width   batch  step                      tokens/s  × sae-lens' speed  × TopK's time")
    for item in timings:
        shape = f"{item.shape.d_in:<5} {item.shape.width:<7} {item.shape.batch:<6}"
        faster = f"{item.speedup_over_sae_lens:17.2f}" if item.speedup_over_sae_lens else " " * 17
        typer.echo(f"{shape} {item.candidate:<25} {item.tokens_per_second:8,.0f} {faster} {item.cost_over_topk:14.2f}")


@app.command()
def correlation(
    covariances: Annotated[int, typer.Option(min=1, help="How many random covariances.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all of them.")] = 0,
    as_json: AsJson = False,
) -> None:
    """KronSAE's toy experiment: RV coefficient between true covariances and those of the SAE's atoms.

    Example: `latentbench bench correlation --covariances 2`
    """
    from harness.bench.correlation import run

    found = run(covariances, seed)
    if as_json:
        print_json({item.model: item.scores for item in found})
        return
    for item in found:
        average, spread = item.summary
        typer.echo(f"{item.model:<20} RV {average:.3f} ± {spread:.3f} (sd over {covariances} covariances)")
