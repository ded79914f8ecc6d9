"""The cost of every point of a sweep on one domain of texts: one pass without steering, and one under each point, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from latentbench.core.errors import DamagedArtifact
from latentbench.interventions.intervention import Intervention, Untouched
from latentbench.reconstruction.documents import DocumentBatch, Domain
from latentbench.reconstruction.predictions import Predictions
from latentbench.statistics.arrays import Array
from latentbench.steering.capability_cost_study import TOKENS_PER_FORWARD, document_logits
from latentbench.store.files import read_arrays, write_arrays
from latentbench.study.context import StageContext

Costs = Mapping[str, Array]
"""`ce` and `kl` [points, documents], `ce_clean` and `predictions` [documents]: sums over each document, float64."""


def measure_costs(context: StageContext, domain: str, groups: Sequence[Sequence[Intervention]]) -> Costs:
    """The sums of `capability_cost` under all interventions, those of a group one after the other.

    A group that a batch has gone through is put down in `context.scratch` and not run on it again.
    """
    texts = Domain(context.model(), context.tokens(domain), TOKENS_PER_FORWARD)
    kept = [
        _GroupSums(context.scratch / f"cost-{domain}-{number}.safetensors", len(group), texts.documents)
        for number, group in enumerate(groups)
    ]
    before, total = sum(one.done for one in kept), texts.documents * sum(map(len, groups))

    def tell() -> None:
        context.progress(sum(one.done for one in kept), total, "documents", part=f"cost on {domain}", before=before)

    @torch.no_grad()
    def add(batch: DocumentBatch) -> None:
        waiting = [(own, group) for own, group in zip(kept, groups, strict=True) if not own.has(batch)]
        if not waiting:
            return
        # As in `capability_cost`: every point is held against the clean pass over the very same batch.
        clean = Predictions.of(document_logits(context, batch, Untouched())[0], batch.ids, batch.real)
        shared = {"predictions": clean.mask.sum(1), "ce_clean": clean.clean_loss()}
        for own, group in waiting:
            losses = [clean.losses(document_logits(context, batch, steered)[0]) for steered in group]
            ce, kl = (torch.stack(values) for values in zip(*losses, strict=True))
            own.put(batch, {**shared, "ce": ce, "kl": kl})
            tell()

    tell()
    for _ in texts.run(add):
        pass
    return _joined(kept)


class _GroupSums:
    """What was measured of one group, in a file that is replaced whole after every batch."""

    def __init__(self, path: Path, points: int, documents: int) -> None:
        self._path, self.points = path, points
        self.arrays: dict[str, Array] = {name: np.zeros(documents) for name in ("covered", "predictions", "ce_clean")}
        self.arrays |= {name: np.zeros((points, documents)) for name in ("ce", "kl")}
        self.arrays |= dict(self._stored())

    def _stored(self) -> Iterator[tuple[str, Array]]:
        try:
            found = read_arrays(self._path) if self._path.is_file() else {}
        except DamagedArtifact:
            return  # measured anew
        yield from ((name, np.array(values, dtype=np.float64)) for name, values in found.items())

    @property
    def done(self) -> int:
        """Documents that were run, counted for each point."""
        return int(self.arrays["covered"].sum()) * self.points

    def has(self, batch: DocumentBatch) -> bool:
        """Whether all its points were measured on a batch."""
        return bool(self.arrays["covered"][batch.documents.numpy()].all())

    def put(self, batch: DocumentBatch, sums: Mapping[str, torch.Tensor]) -> None:
        """Sums [documents] or [points, documents] of a batch."""
        rows = batch.documents.numpy()
        for name, values in sums.items():
            self.arrays[name][..., rows] = values.to("cpu", torch.float64).numpy()
        self.arrays["covered"][rows] = 1
        write_arrays(self._path, {**self.arrays})


def _joined(kept: Sequence[_GroupSums]) -> Costs:
    first = kept[0].arrays
    shared = {name: first[name] for name in ("predictions", "ce_clean")}
    return shared | {name: np.concatenate([own.arrays[name] for own in kept]) for name in ("ce", "kl")}
