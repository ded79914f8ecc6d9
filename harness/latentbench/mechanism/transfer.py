"""What vectors do to the final residual stream here and where they were made, over the same texts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentbench.activations.blocks import decoder_blocks
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.intervention import Intervention
from latentbench.mechanism.metrics.study import DOMAIN
from latentbench.mechanism.metrics.transfer import NAME, TransferAgreement
from latentbench.mechanism.passages import Passages, left_out, passages_of, trace
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_agreement(study: TransferAgreement, context: StageContext) -> Findings:
    """Cosines and lengths per text. Raises InvalidInput where the two models do not read the same tokens."""
    here, home = context.model(), context.home()
    there = home.model()
    if there.tokenizer.get_vocab() != here.tokenizer.get_vocab():
        raise InvalidInput(f"{study.metric}: the two models have other vocabularies, so no text is the same to both")
    passages = passages_of(study, context)
    own, original = (mean_changes(lm, way, passages) for lm, way in ((here, context.subject()), (there, home.subject)))
    # Steering that does nothing has no direction, and one that does nothing here agrees with nothing.
    statistics = {
        "cosine": cosine_similarity(own, original, dim=1, eps=1e-30),
        "texts": torch.ones(len(own), dtype=torch.float64),
        "here": own.norm(dim=1),
        "home": original.norm(dim=1),
    }
    return Findings(
        {DOMAIN: {f"{NAME}.{name}": values.numpy() for name, values in statistics.items()}},
        warnings=left_out(study, passages),
        units=study.units(context, passages.numbers),
    )


@torch.no_grad()
def mean_changes(lm: LanguageModel, intervention: Intervention, passages: Passages) -> Tensor:
    """[B, d] float64: the mean change after the last block over the tokens that each text's generated tokens are predicted from."""
    last = Site(index=len(decoder_blocks(lm.model)) - 1)
    found = []
    for batch in passages.batches(lm):
        steered, plain = (trace(lm, batch, way, [last]).states[last].float() for way in (intervention, None))
        chosen = batch.predicting[..., None]
        total = ((steered - plain).double() * chosen).sum(1)
        found.append((total / chosen.sum(1).clamp_min(1)).cpu())
    return torch.cat(found)
