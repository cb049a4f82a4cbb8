"""ModelNet-C's seven corruptions at five levels (Ren et al., arXiv 2202.03377), made on the fly for a batch of clouds.

What cloud i becomes follows from (seed, corruption, level, i) alone. The benchmark's release fixed one such draw in
files; these are draws of the same distributions from other random numbers, so metrics over them say "generated".

Where the text and the released generator differ, or the text is silent: cluster sizes come from dealing each point to
one of the clusters at random, and points added outside the unit sphere are pulled back onto it (generator); the number
of clusters is uniform over 1 to 8 (text; the generator leaves 8 out). Counts of points are stated for clouds of 1,024
and scale with the number of points.

Trigonometry and logarithms run in float64 and are rounded once, so that a cloud's bits do not depend on where in a
vector register its numbers stood, that is on the batch it came in.

B batch, N points, K points dropped or added, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pointcloud.draws import precise_normal, uniform
from pointcloud.geometry import group

LEVELS = 5
PUBLISHED_POINTS = 1024
MOST_CLUSTERS = 8

# Severity by level: largest factor; standard deviation; largest angle in degrees; thousandths of points; points.
SCALE = (1.6, 1.7, 1.8, 1.9, 2.0)
JITTER = (0.01, 0.02, 0.03, 0.04, 0.05)
ROTATE = (6.0, 12.0, 18.0, 24.0, 30.0)
DROP_GLOBAL = (250, 375, 500, 675, 750)
DROP_LOCAL = (100, 200, 300, 400, 500)
ADD_GLOBAL = (10, 20, 30, 40, 50)
ADD_LOCAL = (100, 200, 300, 400, 500)
ADD_LOCAL_DEVIATION = (0.075, 0.125)


class Draws:
    """The random numbers of clouds `items` (B,) for one purpose: the same whatever batch they stand in."""

    def __init__(self, items: Tensor, *purpose: int | str) -> None:
        self.items, self.purpose = items, purpose

    def uniform(self, count: int, name: str) -> Tensor:
        """(B, count) float64 in [0, 1)."""
        return uniform(self.items, torch.zeros_like(self.items), count, *self.purpose, name).double()

    def normal(self, count: int, name: str) -> Tensor:
        """(B, count) float64, standard normal."""
        return precise_normal(self.items, torch.zeros_like(self.items), count, *self.purpose, name)


def corrupt(points: Tensor, items: Tensor, corruption: str, level: int, *, seed: int = 0) -> Tensor:
    """Corrupted copies (B, N', 3) of clouds (B, N, 3) in the unit sphere; N' is the same for all of a level.

    Args:
        items: (B,) int64, the clouds' numbers in their set.
        corruption: a name of CORRUPTIONS.
        level: severity, 1 to 5.

    Raises:
        ValueError: an unknown corruption or level.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"corruption {corruption!r}: expected one of {', '.join(CORRUPTIONS)}")
    if not 1 <= level <= LEVELS:
        raise ValueError(f"level {level}: expected 1 to {LEVELS}")
    return CORRUPTIONS[corruption](points, Draws(items, seed, "modelnet-c", corruption, level), level - 1)


def scale(points: Tensor, draws: Draws, level: int) -> Tensor:
    """Each axis by a factor of its own, uniform in [1 / S, S]; then back into the unit sphere."""
    largest = SCALE[level]
    factor = 1 / largest + (largest - 1 / largest) * draws.uniform(3, "factor")
    stretched = points.double() * factor.unsqueeze(1)
    stretched = stretched - stretched.mean(1, keepdim=True)
    radius = stretched.square().sum(-1).amax(1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return (stretched / radius.view(-1, 1, 1)).to(points.dtype)


def jitter(points: Tensor, draws: Draws, level: int) -> Tensor:
    """Normal noise on every coordinate, not cut off."""
    noise = draws.normal(points[0].numel(), "noise").view_as(points)
    return (points.double() + JITTER[level] * noise).to(points.dtype)


def rotate(points: Tensor, draws: Draws, level: int) -> Tensor:
    """Turns about x, then y, then z, by angles uniform in [-theta, theta]."""
    angles = math.radians(ROTATE[level]) * (2 * draws.uniform(3, "angles") - 1)
    for axis in range(3):
        direction = torch.eye(3, dtype=torch.float64, device=points.device)[axis].expand(len(points), 3)
        points = turn(points, direction, angles[:, axis])
    return points


def drop_global(points: Tensor, draws: Draws, level: int) -> Tensor:
    """A random part of the points is gone."""
    return keep_random(points, draws, points.shape[1] * (1000 - DROP_GLOBAL[level]) // 1000)


def drop_local(points: Tensor, draws: Draws, level: int) -> Tensor:
    """K points are gone in one to eight clusters, each the nearest neighbours of a random point that is left."""
    B, N, _ = points.shape
    total = min(scaled(DROP_LOCAL[level], N), N - 1)
    sizes = cluster_sizes(draws, total)  # (B, C)
    chance = draws.uniform(MOST_CLUSTERS * N, "centres").view(B, MOST_CLUSTERS, N)
    gone = torch.zeros(B, N, dtype=torch.bool, device=points.device)
    for cluster in range(MOST_CLUSTERS):
        centre = chance[:, cluster].masked_fill(gone, -1).argmax(1)  # (B,)
        distance = (points - group(points, centre.unsqueeze(1))).double().square().sum(-1).masked_fill(gone, torch.inf)
        rank = distance.argsort(dim=1, stable=True).argsort(dim=1)
        gone |= rank < sizes[:, cluster : cluster + 1]
    left = gone.int().argsort(dim=1, stable=True)[:, : N - total]
    return group(points, left)


def add_global(points: Tensor, draws: Draws, level: int) -> Tensor:
    """K points uniform in the unit ball are added."""
    B, N, _ = points.shape
    total = scaled(ADD_GLOBAL[level], N)
    direction = draws.normal(3 * total, "direction").view(B, total, 3)
    direction = direction / direction.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
    radius = draws.uniform(total, "radius").pow(1 / 3)
    return torch.cat([points, (radius.unsqueeze(-1) * direction).to(points.dtype)], dim=1)


def add_local(points: Tensor, draws: Draws, level: int) -> Tensor:
    """K points are added in one to eight normal clusters around random points of the cloud."""
    B, N, _ = points.shape
    total, clusters = scaled(ADD_LOCAL[level], N), min(MOST_CLUSTERS, N)
    centres = draws.uniform(N, "centres").argsort(dim=1, descending=True, stable=True)[:, :clusters]
    last = cluster_sizes(draws, total).cumsum(1)  # (B, C)
    owner = (torch.arange(total, device=points.device).view(1, -1, 1) >= last.unsqueeze(1)).sum(-1) % clusters  # (B, K)
    low, high = ADD_LOCAL_DEVIATION
    deviation = (low + (high - low) * draws.uniform(clusters, "deviation")).gather(1, owner)
    noise = draws.normal(3 * total, "noise").view(B, total, 3)
    added = group(group(points, centres), owner).double() + deviation.unsqueeze(-1) * noise
    added = added / added.square().sum(-1, keepdim=True).sqrt().clamp_min(1)
    return torch.cat([points, added.to(points.dtype)], dim=1)


CORRUPTIONS: dict[str, Callable[[Tensor, Draws, int], Tensor]] = {
    "scale": scale,
    "jitter": jitter,
    "rotate": rotate,
    "drop_global": drop_global,
    "drop_local": drop_local,
    "add_global": add_global,
    "add_local": add_local,
}


def cluster_sizes(draws: Draws, total: int) -> Tensor:
    """(B, C) int64: `total` points dealt at random to the first 1 to 8 (uniform) of C = 8 clusters."""
    clusters = 1 + (MOST_CLUSTERS * draws.uniform(1, "clusters")).long()  # (B, 1)
    owner = (clusters * draws.uniform(total, "dealt")).long()  # (B, total)
    return (owner.unsqueeze(-1) == torch.arange(MOST_CLUSTERS, device=owner.device)).sum(1)


def scaled(count: int, num_points: int) -> int:
    """A count of points that is stated for clouds of 1,024, for clouds of num_points."""
    return round(count * num_points / PUBLISHED_POINTS)


def keep_random(points: Tensor, draws: Draws, count: int) -> Tensor:
    """`count` (at least one) of each cloud's points; those kept of a smaller count are among those of a larger one."""
    order = draws.uniform(points.shape[1], "order").argsort(dim=1, stable=True)
    return group(points, order[:, : max(count, 1)])


def turn(points: Tensor, axes: Tensor, angles: Tensor) -> Tensor:
    """Clouds (B, N, 3) turned about unit axes (B, 3) by angles (B,) in radians (Rodrigues' formula)."""
    wide, axis = points.double(), axes.double().unsqueeze(1)
    cos, sin = angles.double().cos().view(-1, 1, 1), angles.double().sin().view(-1, 1, 1)
    along = (axis * wide).sum(-1, keepdim=True) * axis
    return (wide * cos + torch.linalg.cross(axis.expand_as(wide), wide) * sin + along * (1 - cos)).to(points.dtype)


def turn_upright(points: Tensor, items: Tensor, degrees: float, *, seed: int = 0) -> Tensor:
    """Clouds turned about the up axis z by this angle, to the one side or the other at random."""
    draws = Draws(items, seed, "turn upright", str(degrees))
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=points.device).expand(len(points), 3)
    side = 1 - 2 * (draws.uniform(1, "side").squeeze(1) < 0.5).double()
    return turn(points, axis, math.radians(degrees) * side)


def turn_anyhow(points: Tensor, items: Tensor, degrees: float, *, seed: int = 0) -> Tensor:
    """Clouds turned by this angle about an axis of any direction."""
    axis = Draws(items, seed, "turn anyhow", str(degrees)).normal(3, "axis")
    axis = axis / axis.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
    return turn(points, axis, torch.full_like(axis[:, 0], math.radians(degrees)))


def thin(points: Tensor, items: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """`count` random points of each cloud (all where it has fewer); sparser clouds are parts of denser ones."""
    return keep_random(points, Draws(items, seed, "thin"), count)
