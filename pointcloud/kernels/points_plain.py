"""Farthest points and nearest neighbours in plain PyTorch: the kernels' twins, and what runs on a CPU.

B clouds, N points, M queries, K neighbours. A squared distance is (dx dx + dy dy) + dz dz, each step rounded.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

__all__ = ["farthest_points", "k_nearest", "square_distances"]

CACHED = 2**19
"""Distances that a thread computes at a time: 2 MiB, and as much twice more."""


def farthest_points(points: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """Indices (B, count) of points (B, N, 3): each time the farthest from all taken so far, of equals the first.

    Args:
        lengths: (B,) how many of each cloud's points, from the first, are real; at least 1. None: all.
    """
    B, N, _ = points.shape
    xyz = points.permute(2, 0, 1).contiguous()  # structure of arrays: (3, B, N)
    chosen = torch.zeros(B, count, dtype=torch.long, device=points.device)
    nearest = torch.full((B, N), torch.inf, dtype=points.dtype, device=points.device)  # squared, to the nearest taken
    if lengths is not None:
        nearest.masked_fill_(_beyond(lengths, N), -torch.inf)
    delta, latest = torch.empty_like(xyz), chosen[:, :1]
    x, y, z = delta
    for step in range(1, count):
        torch.sub(xyz, xyz.gather(2, latest.expand(3, B, 1)), out=delta)
        delta.mul_(delta)
        x.add_(y).add_(z)
        torch.minimum(nearest, x, out=nearest)
        latest = nearest.argmax(1, keepdim=True)
        chosen[:, step : step + 1] = latest
    return chosen


def k_nearest(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """Indices (B, M, k) of the k <= N points (B, N, 3) nearest to each query (B, M, 3), nearest first, of equals the
    first. Past a cloud's length they have no meaning.
    """
    if points.device.type == "cpu" and points.dtype == torch.float32:
        return _k_nearest_on_cpu(points, queries, k, lengths)
    distance = square_distances(points, queries)
    if lengths is not None:
        distance.masked_fill_(_beyond(lengths, points.shape[1]).unsqueeze(1), torch.inf)
    if distance.dtype != torch.float32:
        return distance.sort(stable=True, dim=-1).indices[..., :k]
    # Bits of floats that are not negative are ordered as they are; with the index below them no two keys are equal.
    place = torch.arange(distance.shape[-1], device=distance.device)
    key = distance.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(place)
    return key.topk(k, dim=-1, largest=False).values.bitwise_and_(2**32 - 1)


def square_distances(points: Tensor, queries: Tensor) -> Tensor:
    """(B, N, 3), (B, M, 3) -> (B, M, N). Sums of squared differences: |p|^2 + |q|^2 - 2 p.q loses near neighbours."""
    distance = (points[:, None, :, 0] - queries[:, :, None, 0]).square_()
    delta = torch.empty_like(distance)
    for axis in (1, 2):
        torch.sub(points[:, None, :, axis], queries[:, :, None, axis], out=delta)
        distance.add_(delta.mul_(delta))
    return distance


def _k_nearest_on_cpu(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """The same by NumPy, whose selection has vector instructions (torch.topk has none), a few queries at a time so that
    their distances stay in a thread's cache.
    """
    (B, M, _), N = queries.shape, points.shape[1]
    xyz = points.transpose(1, 2).contiguous().numpy()
    found = np.empty((B, M, k), np.int64)
    step = max(1, CACHED // N)

    def search(place: tuple[int, int]) -> None:
        cloud, start = place
        part = slice(start, start + step)
        distance, delta = (np.empty((len(found[cloud, part]), N), np.float32) for _ in range(2))
        for axis, total in ((0, distance), (1, delta), (2, delta)):
            np.subtract(xyz[cloud, axis], queries[cloud, part, axis, None].numpy(), out=total)
            np.multiply(total, total, out=total)
            if axis:
                np.add(distance, delta, out=distance)
        if lengths is not None:
            distance[:, int(lengths[cloud]) :] = np.inf
        found[cloud, part] = _smallest(distance, k)

    places = [(cloud, start) for cloud in range(B) for start in range(0, M, step)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy lets go of the interpreter meanwhile
        list(pool.map(search, places))
    return torch.from_numpy(found)


def _smallest(distance: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k smallest of each row, (M, N) -> (M, k): all up to the k-th smallest, then in order."""
    M, N = distance.shape
    limit = np.partition(distance, k - 1, axis=-1)[:, k - 1 : k]
    near = distance <= limit
    places = np.flatnonzero(near)
    if len(places) > M * k:  # several are as far as the k-th: the first of them
        tied = near.sum(1) > k
        below, at = distance[tied] < limit[tied], distance[tied] == limit[tied]
        near[tied] = below | (at & (at.cumsum(1) <= k - below.sum(1, keepdims=True)))
        places = np.flatnonzero(near)
    # The order of keys made of a distance's bits and its index, as in k_nearest.
    key = distance.reshape(-1)[places].view(np.int32).astype(np.int64) << 32 | places % N
    key = key.reshape(M, k)
    key.sort(axis=-1)
    return key & (2**32 - 1)


def _beyond(lengths: Tensor, N: int) -> Tensor:
    return torch.arange(N, device=lengths.device) >= lengths.unsqueeze(1)  # (B, N)
