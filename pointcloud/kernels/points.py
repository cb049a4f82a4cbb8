"""Farthest points and nearest neighbours as PyTorch operators, one node each to torch.compile and torch.export: Triton
kernels on CUDA, the plain twins elsewhere.

    torch.ops.pointcloud.farthest_points(points, count, lengths) -> (B, count) indices
    torch.ops.pointcloud.k_nearest(points, queries, k, lengths) -> (B, M, k) indices

as in `points_plain`. Neither has a gradient. Importing `pointcloud.geometry` registers them. Files for other programs
have plain operators in their place: points_exported.py, by the tables of pointcloud.export.

B clouds, N points, M queries.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from pointcloud.kernels import points_plain, takes_points

__all__ = ["farthest_points", "k_nearest"]


def _backend(points: Tensor) -> ModuleType:
    if takes_points(points):
        from pointcloud.kernels import points_launch

        return points_launch
    return points_plain


@torch.library.custom_op("pointcloud::farthest_points", mutates_args=())
def farthest_points(points: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    return _backend(points).farthest_points(points, count, lengths)


@farthest_points.register_fake
def _(points: Tensor, count: int, _lengths: Tensor | None) -> Tensor:
    return points.new_empty((points.shape[0], count), dtype=torch.long)


@torch.library.custom_op("pointcloud::k_nearest", mutates_args=())
def k_nearest(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    return _backend(points).k_nearest(points, queries, k, lengths)


@k_nearest.register_fake
def _(points: Tensor, queries: Tensor, k: int, _lengths: Tensor | None) -> Tensor:
    return points.new_empty((*queries.shape[:2], k), dtype=torch.long)
