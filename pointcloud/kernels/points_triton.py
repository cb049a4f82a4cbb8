"""Triton kernels for farthest points and nearest neighbours; `points_launch` calls them, nothing else does.

B clouds, N points, M queries, K neighbours.

One program holds a whole cloud's coordinates in registers, so that all clouds take one launch. Squares and sums are
rounded one by one, in the order of the plain twin (no fused multiply-add), and of equals the lowest index is taken:
both give the same indices, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["farthest", "nearest"]

_LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: an overflowing distance stays below a taken point's


@triton.jit
def _square_distance(x, y, z, to_x, to_y, to_z):
    x, y, z = x - to_x, y - to_y, z - to_z
    return x * x + y * y + z * z


@triton.jit
def farthest(points, lengths, chosen, N, count, BLOCK_N: tl.constexpr):
    """A cloud a program: points (B, N, 3) -> chosen (B, count). `lengths` (B,) or None, where all points are real."""
    b = tl.program_id(0).to(tl.int64)
    points += b * N * 3
    chosen += b * count
    n = tl.arange(0, BLOCK_N)
    length = N
    if lengths is not None:
        length = tl.load(lengths + b).to(tl.int32)
    real = n < length
    x = tl.load(points + n * 3, mask=real, other=0.0)
    y = tl.load(points + n * 3 + 1, mask=real, other=0.0)
    z = tl.load(points + n * 3 + 2, mask=real, other=0.0)
    nearest_taken = tl.where(real, float("inf"), float("-inf"))
    latest = tl.argmax(tl.where(n == 0, 1, 0), axis=0)  # 0, of the type it keeps
    tl.store(chosen, latest.to(tl.int64))
    for step in range(1, count):
        at = points + latest * 3
        distance = _square_distance(x, y, z, tl.load(at), tl.load(at + 1), tl.load(at + 2))
        nearest_taken = tl.minimum(nearest_taken, distance)
        latest = tl.argmax(nearest_taken, axis=0, tie_break_left=True)
        tl.store(chosen + step, latest.to(tl.int64))


@triton.jit
def nearest(points, queries, lengths, index, N, M, K, T, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """One of T tiles of a cloud's queries a program: (B, N, 3), (B, M, 3) -> index (B, M, K), nearest first.

    Each round takes the nearest that is left. Rounds past the cloud's length have no meaning.
    """
    program = tl.program_id(0)
    b = (program // T).to(tl.int64)
    rows = (program % T) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    length = N
    if lengths is not None:
        length = tl.load(lengths + b).to(tl.int32)
    points += b * N * 3
    queries += b * M * 3
    real, asked = n < length, rows < M
    x = tl.load(points + n * 3, mask=real, other=0.0)[None, :]
    y = tl.load(points + n * 3 + 1, mask=real, other=0.0)[None, :]
    z = tl.load(points + n * 3 + 2, mask=real, other=0.0)[None, :]
    to_x = tl.load(queries + rows * 3, mask=asked, other=0.0)[:, None]
    to_y = tl.load(queries + rows * 3 + 1, mask=asked, other=0.0)[:, None]
    to_z = tl.load(queries + rows * 3 + 2, mask=asked, other=0.0)[:, None]
    distance = tl.minimum(_square_distance(x, y, z, to_x, to_y, to_z), _LARGEST)
    distance = tl.where(real[None, :], distance, float("inf"))
    for rank in range(0, K):
        taken = tl.argmin(distance, axis=1, tie_break_left=True)
        tl.store(index + (b * M + rows) * K + rank, taken.to(tl.int64), mask=asked)
        distance = tl.where(n[None, :] == taken[:, None], float("inf"), distance)
