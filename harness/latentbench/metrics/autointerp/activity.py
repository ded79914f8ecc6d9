"""The activations of a few latents, laid out by document and position, from a batch's codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from latentbench.measure.batches import DocumentBatch
from latentbench.sae.codes import Codes


def places_in_batch(batch: DocumentBatch) -> tuple[Tensor, Tensor]:
    """Of the batch's N ordinary tokens: row in the batch [N], and number among the row's ordinary tokens [N]."""
    order = batch.ordinary.cumsum(1) - 1
    rows = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    return rows[batch.ordinary], order[batch.ordinary]


def watched(codes: Codes, column_of: Tensor, columns: int) -> Tensor:
    """[N, columns] absolute activations of some latents only; `column_of` [width] is -1 for the others."""
    column = column_of[codes.indices]
    values = codes.values.abs().float() * (column >= 0)
    out = values.new_zeros(len(values), columns + 1)  # the last column takes what is not watched
    out.scatter_add_(1, column.where(column >= 0, torch.full_like(column, columns)), values)
    return out[:, :columns]


def by_document(values: Tensor, batch: DocumentBatch, window: int) -> Tensor:
    """[B, T, C] of values [N, C]: ordinary tokens side by side, zeros behind; T is a multiple of `window`."""
    rows, order = places_in_batch(batch)
    longest = int(order.max()) + 1 if len(order) else 1
    out = values.new_zeros(len(batch.documents), longest, values.shape[1])
    out[rows, order] = values
    return pad(out, (0, 0, 0, -longest % window))


def cut(values: Tensor, row: Tensor, start: Tensor, window: int) -> Tensor:
    """[M, window, C] windows of `values` [B, T, C] that start at `start` [M] in row `row` [M]."""
    return values[row[:, None], start[:, None] + torch.arange(window, device=values.device)]
