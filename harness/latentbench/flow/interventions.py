"""Interventions on the latents of a running model, at any site, and along flow graphs (Feature Flow, arXiv 2502.03032, §3.4).

Steering vectors (harness/latentbench/steering) add the same vector at every token of the residual stream; `Rescaling` and
`TokenEdit` add what depends on the token, and at MLP and attention outputs too. They leave the same receipts. From seed
latents, `along` and `only` make cumulative steering out of their paths, `removal` deactivates their graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from latentbench.activations.blocks import block_input, with_block_input
from latentbench.activations.massive import EVERY_LENGTH, OrdinaryTokens
from latentbench.activations.residual import HookPoint, hook_point
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.graph import FlowGraph, LatentNode, traced
from latentbench.flow.maps import FlowMaps
from latentbench.flow.options import CountedFrom, Growth, Span
from latentbench.flow.topology import block_of
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Layout, Receipt
from latentbench.interventions.vectors import SteeringVectors
from latentbench.sae.autoencoder import SparseAutoencoder

Delta = Callable[[Tensor, Tensor], Tensor]
"""(hidden states [B, T, d], real tokens [B, T] bool) → what to add [B, T, d]; zero rows are left alone."""


class Rescaling(Intervention):
    """h ← h + (r − 1) Σ a · v over some latents, on every token that counts (Feature Flow, arXiv 2502.03032, §3.4).

    Massive tokens (`counted`) are left alone: they are no input that the SAEs were made for. a is the latent's activation on the hidden state as it arrives, v its decoder row: r = 0 removes the latents, r < 0
    writes their opposite. Where several sites are changed at once, later ones read what the earlier ones left.
    """

    def __init__(
        self,
        saes: Mapping[Site, SparseAutoencoder],
        latents: Mapping[Site, Tensor],
        r: float,
        counted: OrdinaryTokens = EVERY_LENGTH,
    ) -> None:
        self.latents = {site: torch.unique(torch.as_tensor(chosen).long()) for site, chosen in latents.items()}
        self.saes, self.r, self.counted = {site: saes[site] for site in latents}, r, counted

    @property
    def identity(self) -> Json:
        longest = {str(site): limit.plain() for site, limit in self.counted.limits.items() if site in self.latents}
        made = {"rescaled": {str(site): chosen.tolist() for site, chosen in self.latents.items()}, "r": self.r}
        return made | ({"longest": longest} if longest else {})

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        deltas = {site: self._delta(site) for site in self.latents}
        with editing(lm.model, deltas, layout, idle=idle) as receipt:
            yield receipt

    def _delta(self, site: Site) -> Delta:
        sae, latents = self.saes[site], self.latents[site]
        rows = sae.decoder_rows()
        assert rows is not None

        def delta(hidden: Tensor, real: Tensor) -> Tensor:
            real = real & self.counted.short(site, hidden)
            codes = sae.encode(hidden[real].float())  # neither is padding
            chosen = torch.isin(codes.indices, latents.to(codes.indices.device)) & (codes.values != 0)
            sums = torch.nn.functional.embedding_bag(
                codes.indices, rows, per_sample_weights=codes.values * chosen, mode="sum"
            )
            added = torch.zeros_like(hidden)
            added[real] = ((self.r - 1) * sums).to(hidden.dtype)
            return added

        return delta


class TokenEdit(Intervention):
    """A given vector added at one token of every row, at each of several sites."""

    def __init__(self, deltas: Mapping[Site, Tensor], positions: Tensor) -> None:
        self.deltas, self.positions = deltas, positions
        """Site to [B, d], and [B] int64 columns; zero rows change nothing."""

    @property
    def identity(self) -> Json:
        total = sha256(self.positions.cpu().numpy().tobytes())
        for site, delta in sorted(self.deltas.items(), key=lambda item: str(item[0])):
            total.update(f"{site} {list(delta.shape)}\n".encode() + delta.float().cpu().contiguous().numpy().tobytes())
        return {"token_edit": total.hexdigest()}

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        with editing(lm.model, {site: self._delta(site) for site in self.deltas}, layout, idle=idle) as receipt:
            yield receipt

    def _delta(self, site: Site) -> Delta:
        def delta(hidden: Tensor, real: Tensor) -> Tensor:
            added = torch.zeros_like(hidden)
            added[torch.arange(len(hidden), device=hidden.device), self.positions] = self.deltas[site].to(hidden.dtype)
            return added

        return delta


@contextmanager
def editing(
    model: nn.Module, deltas: Mapping[Site, Delta], layout: Layout | None = None, *, idle: bool = False
) -> Iterator[Receipt]:
    """While open, what each function says is added at its site, at real tokens only.

    Works with a KV cache, with passes that are stopped behind the deepest site and with resumed ones whose entrance is
    at or before the first site. Raises CellFailed on leaving when a site was not reached once per pass of the model.
    """
    hooks = _Hooks(layout or Layout())
    places = {site: hook_point(model, site) for site in deltas}
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(hooks.entering, with_kwargs=True).remove)
        for site, delta in deltas.items():
            stack.callback(hooks.install(places[site], site, delta))
        yield hooks.receipt
    hooks.close(len(deltas), idle)


class _Hooks:
    """The hooks of one `editing`, and the receipt that they fill in."""

    def __init__(self, layout: Layout) -> None:
        self.receipt = Receipt()
        self._layout = layout
        self._mask: Tensor | None = None
        self._seen: dict[Site, int] = {}
        """Calls per site."""
        self._ratio = 0.0
        """Σ ‖added‖ / ‖hidden state‖ over changed tokens."""

    def entering(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: remembers which tokens are no padding."""
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else self._layout.real
        self.receipt.passes += 1

    def install(self, place: HookPoint, site: Site, delta: Delta) -> Callable[[], None]:
        """Hooks a site, before all other hooks on it, so that what captures states there reads the changed ones.

        Returns how to undo that.
        """

        def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return place.moved(output, self._added(site, place.read(output), delta))

        def arriving(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = block_input(args, kwargs)
            return with_block_input(args, kwargs, hidden + self._added(site, hidden, delta))

        if site.point == "resid_pre":
            return place.module.register_forward_pre_hook(arriving, prepend=True, with_kwargs=True).remove
        return place.module.register_forward_hook(leaving, prepend=True).remove

    def close(self, sites: int, idle: bool) -> None:
        """Completes the receipt. Raises CellFailed when it does not add up."""
        receipt = self.receipt
        receipt.relative_size = self._ratio / receipt.steered if receipt.steered else 0.0
        if receipt.calls != receipt.passes * sites or len(set(self._seen.values())) > 1:
            calls = ", ".join(f"{site} {count}" for site, count in self._seen.items()) or "none"
            raise CellFailed(f"an intervention was not applied as asked: {receipt.passes} passes, calls: {calls}")
        if not idle and sites and not receipt.passes:
            raise CellFailed("an intervention was not applied: the model did not run while its hooks were installed")

    @torch.no_grad()
    def _added(self, site: Site, hidden: Tensor, delta: Delta) -> Tensor:
        real, order = self._real(hidden)
        added = delta(hidden, real) * real[..., None]
        sizes = torch.linalg.vector_norm(added, dim=-1, dtype=torch.float32)
        norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32).clamp_min(1e-30)
        self._note(site, real, order[sizes > 0], (sizes / norms).sum(dtype=torch.float64))
        return added

    def _real(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are real, and their positions without padding, [B, T]."""
        # With a KV cache hidden states are those of the new tokens, while the mask is that of the whole text.
        batch, length = hidden.shape[:2]
        mask = self._mask
        whole = hidden.new_ones((batch, length), dtype=torch.bool) if mask is None else mask.bool().to(hidden.device)
        return whole[:, -length:], (whole.cumsum(1) - 1)[:, -length:]

    def _note(self, site: Site, real: Tensor, changed: Tensor, ratios: Tensor) -> None:
        receipt = self.receipt
        receipt.calls += 1
        receipt.tokens += int(real.sum())
        receipt.steered += len(changed)
        self._seen[site] = self._seen.get(site, 0) + 1
        self._ratio += float(ratios)
        if len(changed):
            lowest, highest = int(changed.min()), int(changed.max())
            receipt.first_position = min(lowest, lowest if receipt.first_position is None else receipt.first_position)
            receipt.last_position = max(highest, receipt.last_position or 0)


def scheduled(
    schedule: Growth, strength: float, alpha: float, blocks: Sequence[int], counted_from: CountedFrom = "path"
) -> dict[int, float]:
    """Strength per decoder block of a path (ascending): s, s · exp(α (l − l₀)), or from s to 1 over the path.

    l₀ is the path's first block, or 0 where blocks are counted from the model's first one.
    """
    first, last = blocks[0], blocks[-1]
    if schedule == "constant":
        return dict.fromkeys(blocks, strength)
    if schedule == "exponential":
        start = first if counted_from == "path" else 0
        return {block: strength * math.exp(alpha * (block - start)) for block in blocks}
    share = {block: (block - first) / max(1, last - first) for block in blocks}
    return {block: strength + (1 - strength) * share[block] for block in blocks}


def route(maps: FlowMaps, seed: LatentNode, span: Span | None = None) -> list[LatentNode]:
    """The residual latents of a seed's path whose block lies within `span`, first layer to last; none before block 0."""
    return [node for node in traced(maps, seed).path() if _within(node, span)]


def along(
    atoms: Mapping[LatentNode, Tensor],
    routes: Iterable[Sequence[LatentNode]],
    schedule: Growth,
    strength: float,
    *,
    alpha: float = -0.05,
    counted_from: CountedFrom = "path",
) -> VectorInjection:
    """Steering with every latent of some routes; `atoms` are their (folded) decoder rows [d].

    Raises InvalidInput when the routes hold no latent.
    """
    vectors: dict[int, Tensor] = {}
    # Routes are added up after each got its own schedule: they may begin at different blocks, and meet.
    for path in ({block_of(node.site): node for node in nodes} for nodes in routes):
        for block, s in scheduled(schedule, strength, alpha, sorted(path), counted_from).items() if path else ():
            _add(vectors, block, s * atoms[path[block]])
    return _injection(vectors)


def only(atoms: Mapping[LatentNode, Tensor], latents: Iterable[LatentNode], strength: float) -> VectorInjection:
    """Steering with some latents, each at its own layer alone."""
    vectors: dict[int, Tensor] = {}
    for node in latents:
        _add(vectors, block_of(node.site), strength * atoms[node])
    return _injection(vectors)


def removal(
    saes: Mapping[Site, SparseAutoencoder],
    nodes: Iterable[LatentNode],
    r: float,
    counted: OrdinaryTokens = EVERY_LENGTH,
) -> Intervention:
    """Rescaling of latents by r wherever they stand, on tokens that count."""
    chosen: dict[Site, list[int]] = {}
    for node in nodes:
        chosen.setdefault(node.site, []).append(node.index)
    return Rescaling(saes, {site: torch.tensor(indices) for site, indices in chosen.items()}, r, counted)


def graph_nodes(maps: FlowMaps, seeds: Sequence[LatentNode], span: Span | None = None) -> list[LatentNode]:
    """All latents of the seeds' graphs, MLPs and attention included, whose block lies within `span`."""
    graphs: list[FlowGraph] = [traced(maps, seed) for seed in seeds]
    nodes = dict.fromkeys(node for graph in graphs for node in graph.nodes)
    # What stands before block 0 goes with it: it can be rescaled, though nothing can be added there by layer.
    return [node for node in nodes if span is None or span[0] <= max(0, block_of(node.site)) <= span[1]]


def _within(node: LatentNode, span: Span | None) -> bool:
    block = block_of(node.site)
    return block >= 0 and (span is None or span[0] <= block <= span[1])


def _add(vectors: dict[int, Tensor], block: int, vector: Tensor) -> None:
    if block >= 0:  # before the first block nothing can be added by layer
        vectors[block] = vectors[block] + vector if block in vectors else vector


def _injection(vectors: dict[int, Tensor]) -> VectorInjection:
    if not vectors:
        raise InvalidInput("no latent of the flow graph lies within the span that is to be steered")
    return VectorInjection(SteeringVectors(vectors))
