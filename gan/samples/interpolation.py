"""Paths through way points, in latent space and between classes.

Legend: W way points, T times, Z latent size, L classes.

Time is measured in way points: 0 is the first, 1.5 half way from the second to the third. At whole times a path is at
its way point to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def choose_times(way_points: int, steps: int, *, loop: bool) -> Tensor:
    """Equal steps (T,) in float64 from the first way point: to the last one, or round and back to the first.

    The last step of a loop is one before the first way point, so that a film can be repeated.
    """
    index = torch.arange(steps, dtype=torch.float64)
    return index * way_points / steps if loop else index * (way_points - 1) / max(steps - 1, 1)


def interpolate_latents(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985), lengths in between: starts (T, Z), ends (T, Z), shares (T,) to (T, Z).

    Normal vectors of many dimensions lie near a sphere; a straight line between them would pass through its inside,
    where the generator was never trained.
    """
    t = share[:, None].to(start.dtype)
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    cosine = (start * end).sum(1, keepdim=True) / (lengths[0] * lengths[1])
    angle = torch.arccos(cosine.clamp(-1, 1))
    direction = torch.sin((1 - t) * angle) * start / lengths[0] + torch.sin(t * angle) * end / lengths[1]
    turned = direction / angle.sin() * torch.lerp(*lengths, t)
    straight = angle.sin() < 1e-4  # the same direction, or the opposite one, which no great circle prefers
    return torch.where(t == 0, start, torch.where(straight, torch.lerp(start, end, t), turned))


def follow_latents(points: Tensor, times: Tensor) -> Tensor:
    """The path through latents (W, Z) at times (T,): (T, Z); beyond the last way point it returns to the first."""
    return interpolate_latents(points[_leg(times, len(points))], points[_leg(times + 1, len(points))], times.frac())


def follow_classes(numbers: Sequence[int], num_classes: int, times: Tensor) -> Tensor:
    """Weights of the classes (T, L) along the path through classes `numbers`: straight lines, rows that sum to 1."""
    points = F.one_hot(torch.tensor(numbers), num_classes).float()  # (W, L)
    share = times.frac()[:, None].float()
    return torch.lerp(points[_leg(times, len(points))], points[_leg(times + 1, len(points))], share)


def _leg(times: Tensor, way_points: int) -> Tensor:
    return times.floor().long() % way_points
