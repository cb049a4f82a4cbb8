"""Farthest points and nearest neighbours in plain operators, for graphs that leave PyTorch: what ONNX, or a .pt2 file
that knows nothing of this package, has in place of the operators of points.py. The same indices, ties included.

B clouds, N points, M queries, K neighbours. Squared distances are rounded as in points_plain.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

__all__ = ["argsort_by_topk", "farthest_in_a_loop", "nearest_by_keys", "nearest_by_topk"]


def farthest_in_a_loop(points: Tensor, count: int, lengths: Tensor | None = None) -> Tensor:
    """`points_plain.farthest_points` as one loop (ONNX: the operator Loop), whatever `count` is."""
    xyz = points.transpose(1, 2).contiguous()  # (B, 3, N)
    B, _, N = xyz.shape
    # (B, 1, N) and (B, 1, count): sizes of one spare the loop what reshapes. Not made like a view, whose strides of a
    # single cloud the loop's own results would not have.
    nearest = xyz.new_full((B, 1, N), torch.inf)
    if lengths is not None:
        nearest = nearest.masked_fill(_beyond(lengths, points).unsqueeze(1), -torch.inf)
    chosen = xyz.new_zeros((B, 1, count), dtype=torch.long)
    place = torch.arange(count, device=points.device)

    def unfinished(step: Tensor, _nearest: Tensor, _latest: Tensor, _chosen: Tensor) -> Tensor:
        return step < count

    def take(step: Tensor, nearest: Tensor, latest: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        delta = xyz - xyz.gather(2, latest.expand(-1, 3, -1))
        x, y, z = (delta * delta).split(1, 1)
        nearest = torch.minimum(nearest, x + y + z)
        latest = nearest.argmax(2, keepdim=True)  # (B, 1, 1), of equals the first
        return step + 1, nearest, latest, torch.where(place == step, latest, chosen)

    first, latest = torch.ones((), dtype=torch.long, device=points.device), xyz.new_zeros((B, 1, 1), dtype=torch.long)
    indices: Tensor = while_loop(unfinished, take, (first, nearest, latest, chosen))[3]
    return indices.squeeze(1)


def nearest_by_topk(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """`points_plain.k_nearest` for ONNX, whose TopK takes the first of equals. PyTorch's may take any of them."""
    return _square_distances(points, queries, lengths).topk(k, dim=-1, largest=False).indices


def nearest_by_keys(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """`points_plain.k_nearest` for PyTorch: float32 bits with the index below them are keys, no two of them equal."""
    distance = _square_distances(points, queries, lengths).float()
    place = torch.arange(distance.shape[-1], device=distance.device)
    key = (distance.view(torch.int32).long() << 32) | place
    return key.topk(k, dim=-1, largest=False).values & (2**32 - 1)


def argsort_by_topk(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """aten.argsort for ONNX (the Morton order): always stable, as the first of equals comes first in its TopK."""
    del stable
    return x.topk(x.shape[dim], dim=dim, largest=descending).indices


def _square_distances(points: Tensor, queries: Tensor, lengths: Tensor | None) -> Tensor:
    delta = points.unsqueeze(1) - queries.unsqueeze(2)  # (B, M, N, 3)
    x, y, z = (delta * delta).unbind(3)
    distance = x + y + z
    return distance if lengths is None else distance.masked_fill(_beyond(lengths, points).unsqueeze(1), torch.inf)


def _beyond(lengths: Tensor, points: Tensor) -> Tensor:
    return torch.arange(points.shape[1], device=points.device) >= lengths.unsqueeze(1)  # (B, N)
