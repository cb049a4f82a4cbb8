"""A near-optimal one-to-one assignment between the points of two clouds, for a whole batch at once on any device.

The optimum (the earth mover's distance) costs O(N^3) a pair, seconds for a batch on a CPU. Here both clouds are halved
along x, y, z in turn until cells hold one point, cells are matched by their place, and then pairs of pairs swap
partners where that shortens them. Measured on ModelNet40, 1,024 points: 1.06 times the least total distance, where a
random assignment has 2.4 times.

B batch, N points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pointcloud.geometry import group

ROUNDS = 64
GAPS = 6


@torch.no_grad()
def assign_points(first: Tensor, second: Tensor) -> Tensor:
    """(B, N, 3) and (B, N, 3) -> (B, N) indices: the point of `second` that each point of `first` is assigned to.

    Each row is a permutation; it follows from the two clouds alone, whatever batch they stand in.
    """
    order = halving_order(first)
    return swap_partners(first, second, torch.empty_like(order).scatter_(1, order, halving_order(second)))


def halving_order(points: Tensor) -> Tensor:
    """(B, N, 3) -> (B, N): the points' order by the cells of a balanced tree that halves along x, y, z in turn."""
    B, N, _ = points.shape
    order = torch.arange(N, device=points.device).expand(B, N)
    place = torch.arange(N, device=points.device)
    for level in range(max(N - 1, 0).bit_length()):
        coordinate = points[..., level % 3].gather(1, order)
        cell = place * 2**level // N  # in which cell of this level each place lies
        ranked = coordinate.argsort(dim=1, stable=True)
        order = order.gather(1, ranked.gather(1, cell[ranked].argsort(dim=1, stable=True)))
    return order


def swap_partners(first: Tensor, second: Tensor, match: Tensor) -> Tensor:
    """Improves an assignment: each round lays the pairs out along a direction and lets those a gap apart swap.

    The directions are a fixed spread over the sphere, and the points of `first` and of `second` are laid out in turn.
    """
    B, N, _ = first.shape
    for step in range(ROUNDS):
        partner = group(second, match)
        gap = 1 << (step // 2 % GAPS)
        whole = N // (2 * gap) * 2 * gap  # the rest stays as it is this round
        if whole == 0:
            continue
        height = 1 - (2 * step + 1) / ROUNDS  # a Fibonacci spiral
        around, flat = step * math.pi * (3 - math.sqrt(5)), math.sqrt(1 - height**2)
        laid = first if step % 2 else partner
        along = flat * math.cos(around) * laid[..., 0] + flat * math.sin(around) * laid[..., 1] + height * laid[..., 2]
        order = along.argsort(dim=1, stable=True)[:, :whole]
        one, other = order.view(B, -1, 2, gap).unbind(2)
        one, other = one.reshape(B, -1), other.reshape(B, -1)
        a, b, p, q = group(first, one), group(first, other), group(partner, one), group(partner, other)
        better = distance(a, q) + distance(b, p) < distance(a, p) + distance(b, q)
        mine, theirs = match.gather(1, one), match.gather(1, other)
        match = match.scatter(1, one, torch.where(better, theirs, mine))
        match = match.scatter(1, other, torch.where(better, mine, theirs))
    return match


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1).sqrt()
