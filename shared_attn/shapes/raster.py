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
    return owner, torch.arange(len(owner)) - first[owner]


def covered_samples(corners: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples covered by triangles with corners (F, 3, 2+) in units of samples, in squares of side n.

    A sample (column i, row j) lies at (i + 0.5, j + 0.5). Returns triangle, column and row of each covered sample,
    each (S,). Triangles of any orientation.
    """
    x, y = corners[..., 0], corners[..., 1]
    top = (y.amin(1) - 0.5).ceil().clamp(min=0)
    bottom = (y.amax(1) - 0.5).floor().clamp(max=side - 1)
    line_face, line = _expand((bottom - top + 1).clamp(min=0).long())
    row = top[line_face] + line  # (L,)
    height = row + 0.5

    left = torch.full_like(row, torch.inf)
    right = torch.full_like(row, -torch.inf)
    for i in range(3):  # where the row crosses an edge; a row inside a triangle crosses two
        j = (i + 1) % 3
        rise = y[:, j] - y[:, i]
        slope = ((x[:, j] - x[:, i]) / rise)[line_face]
        begin = y[:, i][line_face]
        cross = x[:, i][line_face] + (height - begin) * slope
        passed = (height >= begin) != (height >= y[:, j][line_face])
        left = torch.where(passed, torch.minimum(left, cross), left)
        right = torch.where(passed, torch.maximum(right, cross), right)
    first = (left - 0.5).ceil().clamp(0, side)
    last = (right - 0.5).floor().clamp(-1, side - 1)
    sample_line, offset = _expand((last - first + 1).clamp(min=0).long())
    return line_face[sample_line], first.long()[sample_line] + offset, row.long()[sample_line]


def visible_faces(corners: Tensor, picture: Tensor, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Nearest triangle at every sample of `count` pictures of side n.

    corners (F, 3, 3): x, y in samples and nearness (larger is nearer, affine on the screen, in 0..2); picture (F,): the
    picture a triangle belongs to. Returns the covered samples (S,), as flat indices into (count, n, n), and the
    triangle seen at each (S,). Equal depths (within DEPTH_STEPS) go to the lower triangle, so the result is exact.
    """
    face, column, row = covered_samples(corners, side)
    a, b, c = corners.unbind(1)
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    right = (ab[:, 2] * ac[:, 1] - ab[:, 1] * ac[:, 2]) / area
    down = (ab[:, 0] * ac[:, 2] - ab[:, 2] * ac[:, 0]) / area
    base = a[:, 2] - right * (a[:, 0] - 0.5) - down * (a[:, 1] - 0.5)
    near = base[face] + right[face] * column + down[face] * row
    F = len(corners)
    key = ((2.0 - near) * DEPTH_STEPS).long() * F + face
    sample = (picture[face] * side + row) * side + column
    nothing = torch.iinfo(torch.int64).max
    best = torch.full((count * side * side,), nothing).scatter_reduce_(0, sample, key, "amin")
    seen = (best != nothing).nonzero().squeeze(1)
    return seen, best[seen] % F
