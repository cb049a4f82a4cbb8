"""Clouds for a step, drawn from the stored int16 points and augmented, a whole batch at once.

What an item becomes follows from (seed, epoch, item) alone, see draws.py. The stored array is only read: every result
is a new tensor. (In PCT_Pytorch the augmentation writes through a view: after five epochs clouds of 1,024 points kept
6 to 80 distinct ones.)

B batch, P stored points a cloud, N points drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pointcloud.draws import normal, uniform


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training cloud, in this order; the defaults do nothing but draw the points."""

    num_points: int = 1024
    """Points drawn without replacement from the stored ones (all of them where there are fewer), in random order."""
    point_dropout: float = 0.0
    """Upper end of the share of points that is replaced by copies of the first; the share is uniform from 0."""
    rotation: float = 0.0
    """Largest turn about the up axis z, in degrees, either way; 180 is any."""
    tilt: float = 0.0
    """Largest turn about a random horizontal axis, in degrees, either way; with rotation 180 and tilt 180 any pose
    occurs."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor of each axis by itself."""
    shift: float = 0.0
    """Largest shift along each axis, either way."""
    jitter: float = 0.0
    """Standard deviation of the noise on each coordinate, cut off at five times it."""


def draw_clouds(
    stored: Tensor, items: Tensor, epochs: Tensor, *, unit: float, seed: int, options: Augmentation
) -> tuple[Tensor, Tensor]:
    """Augmented clouds (B, N, 3), float32, and the stored index (B, N) of each of their points.

    Args:
        stored: (D, P, 3) int16 coordinates in units of `unit`.
        items: (B,) which clouds; epochs: (B,) in which pass over the data each of them is.
    """
    B, P = items.shape[0], stored.shape[1]

    def draw(count: int, purpose: str) -> Tensor:
        return uniform(items, epochs, count, seed, purpose)

    index = draw(P, "points").topk(min(options.num_points, P), dim=1).indices  # (B, N)
    N = index.shape[1]
    if options.point_dropout:
        dropped = draw(N, "dropout") < options.point_dropout * draw(1, "dropout share")
        index = torch.where(dropped, index[:, :1], index)
    points = read_clouds(stored, items, index, unit)
    if options.rotation or options.tilt:
        turn, direction, tilt = draw(3, "rotation").unbind(1)
        angle = math.radians(options.rotation) * (2 * turn - 1)
        towards = math.tau * direction
        matrix = turn_z(angle + towards) @ turn_x(math.radians(options.tilt) * (2 * tilt - 1)) @ turn_z(-towards)
        points = points @ matrix.transpose(1, 2)
    low, high = options.scale
    if (low, high) != (1.0, 1.0):
        points = points * (low + (high - low) * draw(3, "scale")).unsqueeze(1)
    if options.shift:
        points = points + (options.shift * (2 * draw(3, "shift") - 1)).unsqueeze(1)
    if options.jitter:
        noise = normal(items, epochs, 3 * N, seed, "jitter").clamp(-5, 5)
        points = points + options.jitter * noise.view(B, N, 3)
    return points, index


def read_clouds(stored: Tensor, items: Tensor, index: Tensor | None, unit: float) -> Tensor:
    """Clouds as they are stored, (B, N, 3) float32; `index` (B, N) picks points of each, None takes all."""
    points = stored.index_select(0, items)
    if index is not None:
        points = points.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
    return points.float() * unit


def turn_z(angle: Tensor) -> Tensor:
    """Rotations about z by angles (B,) in radians: (B, 3, 3), to multiply columns with."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def turn_x(angle: Tensor) -> Tensor:
    """Rotations about x by angles (B,) in radians: (B, 3, 3)."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
