"""SAEs of neighbouring layers with a known relation, and labs built by hand around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentbench.core.paths import Roots
from latentbench.core.progress import unwatched
from latentbench.core.sites import Site
from latentbench.flow.maps import FlowMaps
from latentbench.flow.options import Flow
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.study.context import Content, StageContext

D, WIDTH, LAYERS = 512, 400, 5
RESIDUAL = [Site(index=layer) for layer in range(LAYERS)]
SPLIT, DEAD, WRITTEN, FOREIGN = 8, 20, 16, 12
NOISE = 0.25
"""Length of the noise on a copied direction of length 1: cosine 0.97 with its origin."""


class TiedSae(SparseAutoencoder):
    """z = ReLU(x Dᵀ − θ) of any decoder rows; with `threshold`, JumpReLU."""

    def __init__(self, rows: Tensor, threshold: Tensor | float = 0.0) -> None:
        super().__init__()
        self.width, self.d_in = rows.shape
        self.register_buffer("rows", rows)
        self.register_buffer("theta", torch.as_tensor(threshold).expand(len(rows)).clone())

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        pre = x @ self.rows.T
        return Codes.from_dense(pre * (pre > self.theta) * (pre > 0))

    def decode(self, codes: Codes) -> Tensor:
        return codes.dense(self.width) @ self.rows

    def decoder_rows(self) -> Tensor:
        return self.rows


class LinearTied(TiedSae):
    """With a linear encoder that can be taken out."""

    def __init__(self, rows: Tensor, threshold: Tensor | float = 0.0, encoder: Tensor | None = None) -> None:
        super().__init__(rows, threshold)
        self.register_buffer("encoder", rows if encoder is None else encoder)

    def linear_weights(self) -> object:
        from latentbench.sae.linear import LatentGroup, LinearWeights, ThresholdRule

        rule = ThresholdRule(self.theta)
        bias = torch.zeros(self.width)
        return LinearWeights((LatentGroup(self.encoder, bias, self.rows, rule),), torch.zeros(D))


def random_rows(rows: int, d: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Planted:
    """Layers of decoder rows, and where every latent of a layer comes from."""

    rows: Mapping[Site, Tensor]
    origin: Mapping[Site, Tensor]
    """[width] latent of the residual layer before; −1 for none."""
    written: Mapping[Site, Tensor]
    """[width] latent of the block's MLP; −1 for none."""

    def saes(self) -> dict[Site, SparseAutoencoder]:
        return {site: TiedSae(rows) for site, rows in self.rows.items()}


def planted(seed: int = 0) -> Planted:
    """Every layer keeps most latents in a new order; some die, some split in two, the MLP writes new ones, few of them
    into directions that are there already (processed), and some come from nowhere."""
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> Tensor:
        return unit(torch.randn(count, D, generator=generator))

    def noisy(rows: Tensor) -> Tensor:
        return unit(rows + NOISE * random(len(rows)))

    before = random(WIDTH)
    rows, origin, written = {Site(index=0): before}, {}, {}
    for layer in range(1, LAYERS):
        alive = torch.randperm(WIDTH, generator=generator)[DEAD:]
        split = alive[:SPLIT]
        kept = alive[: WIDTH - SPLIT - WRITTEN // 2 - FOREIGN]
        mlp = random(WIDTH)
        # Half of what the MLP writes is new, the other half strengthens latents that were there.
        strengthened = kept[-WRITTEN // 2 :]
        both = unit(before[strengthened] + mlp[WRITTEN // 2 : WRITTEN])
        parts = [noisy(before[kept[: -WRITTEN // 2]]), both, noisy(before[split]), noisy(mlp[: WRITTEN // 2])]
        made = torch.cat([*parts, random(FOREIGN)])
        source = torch.cat([kept, split, torch.full((WRITTEN // 2 + FOREIGN,), -1)])
        module = torch.full((WIDTH,), -1)
        module[len(kept) - WRITTEN // 2 : len(kept)] = torch.arange(WRITTEN // 2, WRITTEN)
        module[len(kept) + SPLIT : len(kept) + SPLIT + WRITTEN // 2] = torch.arange(WRITTEN // 2)
        order = torch.randperm(WIDTH, generator=generator)
        site = Site(index=layer)
        before = made[order]
        rows[site], origin[site], written[site] = before, source[order], module[order]
        rows[Site(index=layer, point="mlp_out")] = mlp
    return Planted(rows, origin, written)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def lab_of(
    saes: Mapping[Site, SparseAutoencoder],
    *,
    model: Callable[[], Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
    subject: Callable[[], Any] | None = None,
    experiment: Any = None,
    folder: Path = Path(),
    key: str = "0" * 64,
) -> StageContext:
    """A lab by hand; what is not given raises when it is asked for."""

    def missing() -> Any:
        raise AssertionError("this lab has none")

    found = model or missing
    return StageContext(
        experiment=experiment,
        key=key,
        roots=Roots(folder),
        device=torch.device("cpu"),
        scratch=folder / "scratch",
        cache=folder / "cache",
        model=found,
        tokenizer=lambda: found().tokenizer,
        saes=lambda: saes,
        subject=subject or missing,
        tokens=lambda domain: (tokens or {})[domain],
        shared=lambda kind, payload, make: make(),
        progress=unwatched,
    )


def maps_of(saes: Mapping[Site, SparseAutoencoder], options: Flow | None = None, **lab: Any) -> FlowMaps:
    """The maps between SAEs, stored and read back."""
    options = options or Flow()
    made = lab_of(saes, **lab)
    content = options.make(made)
    tensors = {name: tensor.clone() for name, tensor in content.tensors.items()}
    return options.read(Content(tensors, content.meta), made)
