"""Farthest points and nearest neighbours in plain PyTorch: the kernels' twins, and what runs on a CPU.

B clouds, N points, M queries, K neighbours. A squared distance is (dx dx + dy dy) + dz dz, each step rounded.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

__all__ = ["farthest_points", "k_nearest", "square_distances"]


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
    B, N, _ = points.shape
    beyond = None if lengths is None else _beyond(lengths, N)
    clouds = B
    if points.device.type == "cpu":  # so that a thread's distances stay in its cache
        clouds = max(torch.get_num_threads(), 2**18 // max(queries.shape[1] * N, 1))
    found = []
    for start in range(0, max(B, 1), max(clouds, 1)):
        part = slice(start, start + clouds)
        distance = square_distances(points[part], queries[part])
        if beyond is not None:
            distance.masked_fill_(beyond[part].unsqueeze(1), torch.inf)
        found.append(_smallest(distance, k))
    return torch.cat(found)


def square_distances(points: Tensor, queries: Tensor) -> Tensor:
    """(B, N, 3), (B, M, 3) -> (B, M, N). Sums of squared differences: |p|^2 + |q|^2 - 2 p.q loses near neighbours."""
    distance = (points[:, None, :, 0] - queries[:, :, None, 0]).square_()
    delta = torch.empty_like(distance)
    for axis in (1, 2):
        torch.sub(points[:, None, :, axis], queries[:, :, None, axis], out=delta)
        distance.add_(delta.mul_(delta))
    return distance


def _smallest(distance: Tensor, k: int) -> Tensor:
    """Indices of the k smallest of each row, ascending, of equals the first."""
    if distance.dtype != torch.float32:
        return distance.sort(stable=True, dim=-1).indices[..., :k]
    # Bits of floats that are not negative are ordered as they are; with the index below them no two keys are equal.
    place = torch.arange(distance.shape[-1], device=distance.device)
    key = distance.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(place)
    if distance.device.type == "cpu" and k < key.shape[-1]:
        key = _partitioned(key, k)
        return key.sort(dim=-1).values.bitwise_and_(2**32 - 1)
    return key.topk(k, dim=-1, largest=False).values.bitwise_and_(2**32 - 1)


def _partitioned(key: Tensor, k: int) -> Tensor:
    """The k smallest of each row in any order. NumPy's selection has vector instructions, torch.topk has none."""
    rows = key.numpy()  # one memory

    def select(cloud: np.ndarray) -> None:
        cloud.partition(k - 1, axis=-1)

    if torch.get_num_threads() > 1 and len(rows) > 1:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy lets go of the interpreter meanwhile
            list(pool.map(select, rows))
    else:
        select(rows)
    return key[..., :k].contiguous()


def _beyond(lengths: Tensor, N: int) -> Tensor:
    return torch.arange(N, device=lengths.device) >= lengths.unsqueeze(1)  # (B, N)
