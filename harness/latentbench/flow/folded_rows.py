"""What steering along a flow graph adds: decoder rows, folded so that latents of different layers and SAEs are comparable.

Folding (SAE Match, arXiv 2410.07656, eq. 4) multiplies a decoder row by the latent's threshold, from which on it fires, or,
for SAEs without thresholds, by its mean activation where it is active: one unit of strength is then about what the latent
itself writes when it fires.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from latentbench.core.sites import Site
from latentbench.flow.activity import mean_active, texts_of
from latentbench.flow.graph import LatentNode
from latentbench.flow.matching import decoder_rows, thresholds
from latentbench.flow.options import Flow, Fold
from latentbench.study.context import StageContext


def folded_rows(
    fold: Fold, options: Flow, context: StageContext, nodes: Iterable[LatentNode]
) -> dict[LatentNode, Tensor]:
    """The decoder row [d] of every latent, times what `fold` says; mean activations are those on the texts of `options`.

    Raises InvalidInput where an SAE has no thresholds or there are no texts.
    """
    latents: dict[Site, list[LatentNode]] = {}
    for node in dict.fromkeys(nodes):
        latents.setdefault(node.site, []).append(node)
    means = mean_active(context, texts_of(options, context), latents) if fold == "activation" else {}
    found: dict[LatentNode, Tensor] = {}
    for site, here in latents.items():
        sae, indices = context.saes()[site], [node.index for node in here]
        rows = decoder_rows(sae, site)[indices].float()
        scale = thresholds(sae, site) if fold == "threshold" else means.get(site)
        found |= zip(here, rows if scale is None else rows * scale.to(rows)[indices, None], strict=True)
    return found
