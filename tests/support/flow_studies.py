"""Small SAEs of overlapping random directions on the pocket model, and the lab that flow studies run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.flow.options import Flow
from latentbench.metrics.values import metric_values
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import TopKOptions
from latentbench.spec.experiment import Experiment
from latentbench.study.context import StageContext
from latentbench.study.study import Findings, Study
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.flow import lab_of, maps_of, unit

R0, M1, R1, R2 = Site(index=0), Site(index=1, point="mlp_out"), Site(index=1), Site(index=2)
SITES = [R0, M1, R1, R2]
WIDTH, K = 48, 8
DATA = {name: {"adapter": "pocket", "domain": name, "split": "eval", "documents": 12, "context": 40} for name in
        ("general", "chemistry")}  # fmt: skip


def experiment() -> Experiment:
    return Experiment.model_validate(
        {
            "model": {"adapter": "pocket"},
            "layers": [{"index": s.index, "point": s.point} for s in SITES],
            "dataset": {"eval": DATA},
            "sae": {"variant": "topk", "width": WIDTH, "k": K},
            "flow": {"matching": "cosine"},
            "metrics": [{"metric": "flow_matching"}],
        }
    )


def pocket() -> LanguageModel:
    return PocketModel().load(Roots(Path()), torch.device("cpu"))


def studying(lm: LanguageModel, folder: Path) -> StageContext:
    """Maps with k = 2 and without the chance level, which few dimensions would make high."""
    saes = {site: random_sae(seed) for seed, site in enumerate(SITES)}
    maps = maps_of(saes, Flow.model_validate({"k": 2, "thresholds": {"chance": 1}}))
    made = experiment()
    tokens = {name: tokens_of(lm, data) for name, data in made.dataset.eval.items()}
    return lab_of(saes, model=lambda: lm, tokens=tokens, subject=lambda: maps, experiment=made, folder=folder)


def tokens_of(lm: LanguageModel, data: Any) -> EvalTokens:
    return evaluation_tokens(data.texts(Roots(Path())), lm.tokenizer, context=data.context, documents=data.documents)


def random_sae(seed: int) -> SparseAutoencoder:
    """A TopK SAE whose encoder is its decoder: overlapping directions, so that maps and firings are related."""
    sae = TopKOptions(width=WIDTH, k=K).build(128, torch.Generator().manual_seed(seed))
    shared = torch.randn(WIDTH, 128, generator=torch.Generator().manual_seed(99))
    own = torch.randn(WIDTH, 128, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))
    rows = unit(shared[order] + 0.7 * own)
    with torch.no_grad():
        for name, tensor in sae.state_dict(keep_vars=True).items():
            tensor.copy_(rows if tensor.shape == rows.shape else torch.zeros_like(tensor)) if "W" in name or (
                "weight" in name
            ) else tensor.zero_()
    return sae.eval().requires_grad_(False)


def numbers(study: Study, found: Findings) -> dict[tuple[str, str, str], float | None]:
    """Every number of a study, as a record would hold it."""
    values = [*metric_values([study], found.statistics, reasons=found.reasons), *found.values]
    return {(value.domain or "", value.id, str(sorted(value.params.items()))): value.value for value in values}
