"""Farthest points and nearest neighbours as PyTorch operators, one node each to torch.compile and torch.export: Triton
kernels on CUDA, the plain twins elsewhere.

    torch.ops.pointcloud.farthest_points(points, count, lengths) -> (B, count) indices
    torch.ops.pointcloud.k_nearest(points, queries, k, lengths) -> (B, M, k) indices

as in `points_plain`. Neither has a gradient. Importing `pointcloud.geometry` registers them.

B clouds, N points, M queries.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from pointcloud.kernels import points_plain, takes_points

__all__ = ["farthest_points", "k_nearest"]


def _backend(points: Tensor) -> ModuleType:
    if takes_points(points):
        from pointcloud.kernels import points_launch

        return points_launch
    return points_plain


# Defined thus and not by torch.library.custom_op, whose first call imports all of torch.compile: a second's wait.
_library = torch.library.Library("pointcloud", "FRAGMENT")
_library.define("farthest_points(Tensor points, SymInt count, Tensor? lengths) -> Tensor")
_library.define("k_nearest(Tensor points, Tensor queries, SymInt k, Tensor? lengths) -> Tensor")


def _farthest_points(points: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    return _backend(points).farthest_points(points, count, lengths)


@torch.library.register_fake("pointcloud::farthest_points", lib=_library)
def _(points: Tensor, count: int, _lengths: Tensor | None) -> Tensor:
    return points.new_empty((points.shape[0], count), dtype=torch.long)


def _k_nearest(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    return _backend(points).k_nearest(points, queries, k, lengths)


@torch.library.register_fake("pointcloud::k_nearest", lib=_library)
def _(points: Tensor, queries: Tensor, k: int, _lengths: Tensor | None) -> Tensor:
    return points.new_empty((*queries.shape[:2], k), dtype=torch.long)


_library.impl("farthest_points", _farthest_points, "CompositeExplicitAutograd")
_library.impl("k_nearest", _k_nearest, "CompositeExplicitAutograd")
farthest_points: Callable[[Tensor, int, Tensor | None], Tensor] = torch.ops.pointcloud.farthest_points.default
k_nearest: Callable[[Tensor, Tensor, int, Tensor | None], Tensor] = torch.ops.pointcloud.k_nearest.default


@register_decomposition(torch.ops.pointcloud.farthest_points.default)
def _farthest_in_plain_operators(points: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """For ONNX, whose exporter consults torch's table: `count` rounds, one after the other."""
    latest = torch.zeros_like(points[:, :1, 0], dtype=torch.long)  # (B, 1)
    chosen, nearest = [latest], torch.full_like(points[..., 0], torch.inf)
    if lengths is not None:
        beyond = torch.arange(points.shape[1], device=points.device) >= lengths.unsqueeze(1)
        nearest = torch.where(beyond, -torch.inf, nearest)
    for _ in range(1, count):
        taken = points.gather(1, latest.unsqueeze(2).expand(-1, -1, 3))  # (B, 1, 3)
        x, y, z = (points - taken).square().unbind(2)
        nearest = torch.minimum(nearest, x + y + z)
        latest = nearest.argmax(1, keepdim=True)
        chosen.append(latest)
    return torch.cat(chosen, 1)


@register_decomposition(torch.ops.pointcloud.k_nearest.default)
def _nearest_in_plain_operators(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    x, y, z = (points.unsqueeze(1) - queries.unsqueeze(2)).square().unbind(3)
    distance = x + y + z  # (B, M, N)
    if lengths is not None:
        beyond = torch.arange(points.shape[1], device=points.device) >= lengths.unsqueeze(1)
        distance = torch.where(beyond.unsqueeze(1), torch.inf, distance)
    return distance.topk(k, dim=-1, largest=False).indices
