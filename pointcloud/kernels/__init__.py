"""Triton kernels of the point networks, each beside its plain-PyTorch twin; chosen by device, never by the user.

SHARED_ATTN_KERNELS=0 turns them off together with shared_attn's.
"""

from __future__ import annotations

from torch import Tensor

from shared_attn.kernels import kernels_enabled

__all__ = ["MAX_POINTS", "takes_points"]

MAX_POINTS = 8192
"""Points of a cloud that fit into the registers of one program."""


def takes_points(points: Tensor) -> bool:
    """Whether farthest points and neighbours among these (B, N, 3) go through the kernels."""
    return kernels_enabled(points) and 0 < points.shape[1] <= MAX_POINTS and points.shape[0] > 0
