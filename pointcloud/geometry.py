"""Geometry of point clouds: farthest points, nearest neighbours, grouping, the Morton order.

B clouds, N points, M centres (or queries), K neighbours, C channels. Batched, without gradients through the choice of
indices; on CUDA one Triton kernel each for all clouds. Coordinates must be finite: clouds with NaN are refused where
data enters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pointcloud.kernels import points as operators


def farthest_points(points: Tensor, count: int, lengths: Tensor | None = None) -> Tensor:
    """Farthest-point sampling that starts at point 0: (B, N, 3) -> (B, count) indices.

    Each step takes the point farthest from all taken so far (of equals, the first). The first m of the result are
    the farthest m, so one run serves every level of a network. Once every distinct point is taken, the rest repeats
    point 0: clouds with fewer than `count` distinct points are legal.

    Args:
        lengths: (B,) integers of at least 1: how many of each cloud's points, from the first, are real. None: all.
    """
    B, N, _ = points.shape
    if N == 0 or count < 1:
        raise ValueError(f"farthest_points: {N} points and count {count}, expected at least one of each")
    return operators.farthest_points(points.detach(), count, lengths)


def k_nearest(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """The k points nearest to each query, nearest first (of equals the first): (B, N, 3), (B, M, 3) -> (B, M, k).

    Distances are sums of squared differences: |p|^2 + |q|^2 - 2 p.q loses near neighbours to cancellation in
    float32. Where k > N, the N neighbours are repeated in turn, so a maximum over them is unchanged.

    Args:
        lengths: as in `farthest_points`, of `points`; a cloud's neighbours are repeated where k exceeds its length.
    """
    N = points.shape[1]
    if N == 0 or k < 1:
        raise ValueError(f"k_nearest: {N} points and k = {k}, expected at least one of each")
    dynamic = isinstance(N, torch.SymInt)  # in an exported graph, which has to hold for k <= N and k > N alike
    taken = torch.sym_min(k, N) if dynamic else min(k, N)
    index = operators.k_nearest(points.detach(), queries.detach(), taken, lengths)
    if lengths is not None:
        turn = torch.arange(k, device=index.device) % lengths.unsqueeze(1)  # (B, k)
        return index.gather(2, turn.unsqueeze(1).expand(*index.shape[:2], k))
    if dynamic:
        place = torch.arange(k, device=index.device)
        return index.index_select(2, place % torch.full_like(place, N))
    if k > N:
        index = index.repeat(1, 1, -(-k // N))[..., :k]
    return index


def flat_index(index: Tensor, num_points: int) -> Tensor:
    """Indices into each cloud (B, ...) -> indices into all clouds' points laid end to end, one dimension."""
    start = torch.arange(index.shape[0], device=index.device) * num_points
    return (index + start.view(-1, *[1] * (index.ndim - 1))).flatten()


def group(features: Tensor, index: Tensor) -> Tensor:
    """Rows by index: (B, N, C), (B, ...) -> (B, ..., C). One flat index_select: several times faster than indexing."""
    B, N, C = features.shape
    return features.reshape(B * N, C).index_select(0, flat_index(index, N)).view(*index.shape, C)


@torch.no_grad()
def morton_order(points: Tensor, bits: int = 16) -> Tensor:
    """Permutation of each cloud along the Morton (Z-order) curve: (B, N, 3) -> (B, N) indices.

    Each cloud's bounding cube is cut into 2^bits cells an axis; the bits of a cell's three numbers are interleaved
    (x highest). Points of one octree cell become neighbours in the sequence; equal cells keep their order.
    """
    if not 1 <= bits <= 20:  # noqa: PLR2004 (3 x 20 bits fit a 64-bit integer)
        raise ValueError(f"morton_order: bits = {bits}, expected 1 to 20")
    low = points.amin(1, keepdim=True)
    side = (points.amax(1, keepdim=True) - low).amax(2, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)
    cell = ((points - low) / side * 2**bits).long().clamp_(0, 2**bits - 1)  # (B, N, 3)
    code = torch.zeros_like(cell[..., 0])
    for bit in reversed(range(bits)):
        for axis in range(3):
            code = (code << 1) | ((cell[..., axis] >> bit) & 1)
    return code.argsort(dim=1, stable=True)
