"""Launches the kernels for farthest points and neighbours: the backend of their operators on CUDA.

B clouds, N points, M queries, K neighbours.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pointcloud.kernels import points_triton as kernels

__all__ = ["farthest_points", "k_nearest"]

_TILE = 4096  # distances that a program of four warps holds in registers


def farthest_points(points: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """See `points_plain.farthest_points`."""
    B, N, _ = points.shape
    chosen = points.new_empty((B, count), dtype=torch.long)
    width = _power_of_two(N)
    with _device(points):
        kernels.farthest[(B,)](
            _rows(points), lengths, chosen, N, count,
            BLOCK_N=width, num_warps=max(1, min(16, width // 256)), enable_fp_fusion=False,
        )  # fmt: skip
    return chosen


def k_nearest(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """See `points_plain.k_nearest`."""
    (B, N, _), M = points.shape, queries.shape[1]
    index = points.new_empty((B, M, k), dtype=torch.long)
    width = _power_of_two(N)
    rows = max(1, min(_TILE // width, 16))
    T = -(-M // rows)
    with _device(points):
        if B * T:
            kernels.nearest[(B * T,)](
                _rows(points), _rows(queries), lengths, index, N, M, k, T,
                BLOCK_N=width, BLOCK_M=rows, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return index


def _rows(points: Tensor) -> Tensor:
    return points.float().contiguous()


def _power_of_two(size: int) -> int:
    return max(32, 1 << (size - 1).bit_length())


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
