"""Triangles to samples: a z-buffer rasteriser in plain torch, vectorised over the triangles of many pictures.

Every triangle is cut into the rows of samples it covers, every row into the samples between its left and right edge;
nothing outside a triangle is ever looked at. Legend: F triangles, L rows of triangles, S covered samples, n side.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEPTH_STEPS = float(1 << 22)  # nearer than one step counts as equal depth: then the lower face number wins


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts (F,): owner (sum,) of each of the items, and its number within the owner."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner)) - torch.index_select(first, 0, owner)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first dimension, by the faster road."""
    return torch.index_select(values, 0, index)


def covered_samples(corners: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples covered by triangles with corners (F, 3, 2+) in units of samples, in squares of side n.

    A sample (column i, row j) lies at (i + 0.5, j + 0.5). Returns triangle, column and row of each covered sample,
    each (S,). Triangles of any orientation.
    """
    x, y = corners[..., 0], corners[..., 1]
    top = (y.amin(1) - 0.5).ceil().clamp(min=0)
    bottom = (y.amax(1) - 0.5).floor().clamp(max=side - 1)
    line_face, line = _expand((bottom - top + 1).clamp(min=0).long())
    row = pick(top, line_face) + line  # (L,)
    height = row + 0.5

    left = torch.full_like(row, torch.inf)
    right = torch.full_like(row, -torch.inf)
    above = [height >= pick(y[:, i].contiguous(), line_face) for i in range(3)]
    for i in range(3):  # where the row crosses an edge; a row inside a triangle crosses two
        j = (i + 1) % 3
        slope = (x[:, j] - x[:, i]) / (y[:, j] - y[:, i])
        cross = pick(x[:, i] - slope * y[:, i], line_face) + height * pick(slope, line_face)
        passed = above[i] != above[j]
        left = torch.where(passed, torch.minimum(left, cross), left)
        right = torch.where(passed, torch.maximum(right, cross), right)
    first = (left - 0.5).ceil().clamp(0, side)
    last = (right - 0.5).floor().clamp(-1, side - 1)
    sample_line, offset = _expand((last - first + 1).clamp(min=0).long())
    column = pick(first.long(), sample_line) + offset
    return pick(line_face, sample_line), column, pick(row.long(), sample_line)


def planes(corners: Tensor, values: Tensor) -> Tensor:
    """C quantities given at corners (F, 3, C) -> (F, 3, C): value at sample (0, 0), step per column, step per row."""
    a, b, c = corners.unbind(1)
    ab, ac = b - a, c - a
    area = (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])[:, None]
    v, vb, vc = values[:, 0], values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    right = (vb * ac[:, 1:2] - vc * ab[:, 1:2]) / area
    down = (vc * ab[:, 0:1] - vb * ac[:, 0:1]) / area
    base = v - right * (a[:, 0:1] - 0.5) - down * (a[:, 1:2] - 0.5)
    return torch.stack([base, right, down], 1)


def visible_faces(corners: Tensor, picture: Tensor, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Nearest triangle at every sample of `count` pictures of side n.

    corners (F, 3, 3): x, y in samples and nearness (larger is nearer, affine on the screen, in 0..2); picture (F,): the
    picture a triangle belongs to. Returns the covered samples (S,), as flat indices into (count, n, n), and the
    triangle seen at each (S,). Equal depths (within DEPTH_STEPS) go to the lower triangle, so the result is exact.
    """
    face, column, row = covered_samples(corners, side)
    base, right, down = planes(corners, corners[..., 2:])[..., 0].unbind(1)
    near = pick(base, face) + pick(right, face) * column + pick(down, face) * row
    key = ((2.0 - near) * DEPTH_STEPS).long() * len(corners) + face
    sample = (pick(picture, face) * side + row) * side + column
    nothing = torch.iinfo(torch.int64).max
    best = torch.full((count * side * side,), nothing).scatter_reduce_(0, sample, key, "amin")
    seen = (best != nothing).nonzero().squeeze(1)
    return seen, pick(best, seen) % len(corners)
