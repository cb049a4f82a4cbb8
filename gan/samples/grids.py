"""Grids of samples and of interpolations: what stands in each place.

Legend: N samples, Z latent size, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gan.generator import Generator
from gan.samples.interpolation import choose_times, follow_classes, follow_latents
from gan.samples.options import COUNT, SampleConfig
from gan.sampling import draw_latents


@dataclass(frozen=True)
class Grid:
    """Latents (N, Z) before truncation, class weights (N, L), images a row, and names."""

    z: Tensor
    labels: Tensor
    columns: int
    row_names: Sequence[str]
    column_names: Sequence[str] = ()


def plan_grid(generator: Generator, config: SampleConfig, classes: Sequence[int]) -> Grid:
    """Choose what stands in each place of a grid: a row a class, unless it is between classes.

    Interpolations and named seeds fill whole rows; of plain samples there are as many as asked for.
    """
    count = config.count or COUNT
    if config.interpolate_classes:
        return _plan_between_classes(generator, config, classes, count)
    if config.interpolate:
        row = _pass_seeds(generator, config, -(-count // len(classes)))
    else:
        seeds = config.seeds or range(config.seed, config.seed - (-count // len(classes)))
        row = draw_latents(seeds, generator.latent_dim)
    rows = len(classes) if config.seeds else min(len(classes), -(-count // len(row)))
    last = rows * len(row) if config.seeds or config.interpolate else count
    labels = torch.tensor(classes[:rows]).repeat_interleave(len(row))
    names = [generator.class_names[number] for number in classes[:rows]]
    return Grid(row.repeat(rows, 1)[:last], labels[:last], len(row), names)


def _plan_between_classes(generator: Generator, config: SampleConfig, classes: Sequence[int], count: int) -> Grid:
    """Across from class to class, a seed a row; with --interpolate down from class to class, across between seeds."""
    rows = len(config.seeds) if config.seeds and not config.interpolate else math.isqrt(count)
    steps = _meet_way_points(len(classes), rows if config.interpolate else -(-count // rows))
    times = choose_times(len(classes), steps, loop=False)
    weights = follow_classes(classes, generator.num_classes, times)  # (steps, L)
    names = [generator.class_names[classes[int(time)]] if time.is_integer() else "" for time in times.tolist()]
    if config.interpolate:
        row = _pass_seeds(generator, config, -(-count // steps))
        return Grid(row.repeat(steps, 1), weights.repeat_interleave(len(row), dim=0), len(row), names)
    seeds = config.seeds or range(config.seed, config.seed + rows)
    z = draw_latents(seeds, generator.latent_dim).repeat_interleave(steps, dim=0)
    return Grid(z, weights.repeat(rows, 1), steps, [f"seed {seed}" for seed in seeds], names)


def _pass_seeds(generator: Generator, config: SampleConfig, steps: int) -> Tensor:
    """Latents from seed to seed in about `steps` steps."""
    points = draw_latents(config.seeds or (config.seed, config.seed + 1), generator.latent_dim)
    return follow_latents(points, choose_times(len(points), _meet_way_points(len(points), steps), loop=False))


def _meet_way_points(way_points: int, steps: int) -> int:
    """About `steps`, so that equal steps meet every way point."""
    legs = way_points - 1
    return legs * max(1, (steps - 1) // legs) + 1
