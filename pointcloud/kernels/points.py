"""Farthest points and nearest neighbours as PyTorch operators, one node each to torch.compile and torch.export: Triton
kernels on CUDA, the plain twins elsewhere.

    torch.ops.pointcloud.farthest_points(points, count, lengths) -> (B, count) indices
    torch.ops.pointcloud.k_nearest(points, queries, k, lengths) -> (B, M, k) indices

as in `points_plain`. Neither has a gradient. Importing `pointcloud.geometry` registers them. Files for other programs
have plain operators in their place: points_exported.py, by the tables of pointcloud.export.

B clouds, N points, M queries.
"""

from __future__ import annotations

from collections.abc import Callable
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
k_nearest: Callable[[Tensor, Tensor, int | torch.SymInt, Tensor | None], Tensor] = (
    torch.ops.pointcloud.k_nearest.default
)
