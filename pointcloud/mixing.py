"""Clouds mixed from two: PointCutMix-K and -R (arXiv 2101.01461) and RSMix (arXiv 2102.01929), a whole batch at once.

The published forms mix a batch with a shuffle of itself under one share for all; here each cloud draws its own share
and its own partner among all training clouds, from (seed, epoch, item) alone, so that what an item becomes does not
depend on the batch it stands in. The label is exact: the share of points that come from each cloud.

B batch, N points, D training clouds, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pointcloud.assignment import assign_points
from pointcloud.augmentation import Augmentation, draw_clouds
from pointcloud.clouds import CloudSet
from pointcloud.draws import beta, uniform
from pointcloud.geometry import group
from pointcloud.presets import Config

PointMix = Literal["cutmix_k", "cutmix_r", "rsmix"]
# RSMix moves at most 512 of 1,024 points.
RSMIX_LARGEST = 0.5


def mix_clouds(
    config: Config, clouds: CloudSet, points: Tensor, items: Tensor, epochs: Tensor, options: Augmentation
) -> tuple[tuple[Tensor], Tensor]:
    """Inputs ((B, N, 3),) and labels (B, K) of a training step, some of whose clouds have a part of another.

    The partner is augmented as its own item is in that epoch.

    Args:
        config: point_mix, mix_probability, mix_beta and seed are read.
        points: (B, N, 3) the augmented clouds `items` (B,) in passes `epochs` (B,).
    """
    assert config.point_mix != "none"
    B, N, _ = points.shape
    mixed = uniform(items, epochs, 2, config.seed, "mix")
    partners = (mixed[:, 0].double() * len(clouds)).long()
    theirs, _ = draw_clouds(clouds.points, partners, epochs, unit=clouds.unit, seed=config.seed, options=options)
    share = beta(items, epochs, config.mix_beta, config.seed, "mix share")
    share = torch.where(mixed[:, 1] < config.mix_probability, share, 0.0)
    chance = uniform(items, epochs, 2 * N, config.seed, "mix points").view(B, 2, N)
    points, moved = mix_points(points, theirs, share, chance, config.point_mix)
    num_classes = len(clouds.class_names)
    own, other = (F.one_hot(clouds.label[index], num_classes).float() for index in (items, partners))
    part = (moved.float() / N).unsqueeze(1)
    return (points,), (1 - part) * own + part * other


def mix_points(
    first: Tensor, second: Tensor, share: Tensor, chance: Tensor, point_mix: PointMix
) -> tuple[Tensor, Tensor]:
    """Clouds (B, N, 3) with floor(share * N) of each one's points from `second`, and how many these are (B,).

    cutmix_r: random points of the first are replaced by the points of the second that are assigned to them; cutmix_k:
    a random point and its nearest neighbours are; rsmix: a random point of the first and its nearest neighbours make
    room for a random point of the second and its nearest neighbours, moved as a whole so that both points coincide.

    Args:
        share: (B,) in [0, 1]; rsmix cuts it at half.
        chance: (B, 2, N) random numbers. The greatest of the first row stands at the first's random point, the greatest
            of the second at the second's; for cutmix_r the first row orders the points.
    """
    N = first.shape[1]
    if point_mix == "rsmix":
        share = share.clamp_max(RSMIX_LARGEST)
    moved = (share.double() * N).long()  # (B,)
    order = chance[:, 0].argsort(dim=1, descending=True, stable=True)
    if point_mix != "cutmix_r":
        order = nearest_first(first, order[:, :1])
    if point_mix == "rsmix":
        theirs = nearest_first(second, chance[:, 1].argmax(1, keepdim=True))
        source = group(second, theirs) - group(second, theirs[:, :1]) + group(first, order[:, :1])
    else:
        source = group(second, assign_points(first, second).gather(1, order))
    place = torch.arange(N, device=first.device)
    kept = group(first, order)
    mixed = torch.where((place < moved.unsqueeze(1)).unsqueeze(-1), source, kept)
    return torch.empty_like(first).scatter_(1, order.unsqueeze(-1).expand(-1, -1, 3), mixed), moved


def nearest_first(points: Tensor, centre: Tensor) -> Tensor:
    """(B, N, 3) and one point's index (B, 1) -> (B, N): all indices by distance from it, itself first."""
    distance = (points - group(points, centre)).square().sum(-1)
    return distance.scatter(1, centre, -1.0).argsort(dim=1, stable=True)
