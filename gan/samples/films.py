"""Films of interpolations: tiles that pass from seed to seed, from class to class, or both.

Legend: F frames, T tiles a frame, W way points, Z latent size, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gan.generator import Generator
from gan.pictures import draw_page
from gan.samples.interpolation import choose_times, follow_classes, follow_latents
from gan.sampling import BATCH, draw_images, draw_latents, squeeze_latents

if TYPE_CHECKING:
    from PIL import Image

SEEDS_A_TILE = 4  # way points of a tile that no --seeds names
FRAMES_A_LEG = 24


@dataclass(frozen=True)
class Film:
    """What every tile passes through; all tiles are back at their first way point when the film begins anew.

    Attributes:
        z: latents of the way points (W, T, Z) before truncation; one way point: they stay.
        classes: way points of all tiles; or, if classes stay, the rows' classes.
        moving_classes: whether `classes` are way points.
        columns: tiles a row.
        count: frames.
    """

    z: Tensor
    classes: Sequence[int]
    moving_classes: bool
    columns: int
    count: int


def plan_film(
    generator: Generator,
    *,
    count: int,
    seeds: Sequence[int] = (),
    seed: int = 0,
    classes: Sequence[int],
    move_latents: bool,
    move_classes: bool,
    frames: int | None = None,
) -> Film:
    """Choose tiles and way points.

    Where classes stay, there is a row a class and a column a path; where they move, every tile shows the same blend.
    Given `seeds` are one path's way points; without `move_latents` a tile each. Otherwise there are about `count`
    tiles, with seeds of their own from `seed` on.
    """
    rows = 1 if move_classes else min(len(classes), count)
    way_points = (len(seeds) or SEEDS_A_TILE) if move_latents else 1
    tiles = len(seeds) // way_points or -(-count // rows)
    chosen = seeds or range(seed, seed + way_points * tiles)
    z = draw_latents(chosen, generator.latent_dim).unflatten(0, (way_points, tiles))
    longest = max(way_points, len(classes) if move_classes else 1)
    return Film(
        z=z,
        classes=classes if move_classes else classes[:rows],
        moving_classes=move_classes,
        columns=math.ceil(math.sqrt(tiles)) if move_classes else tiles,
        count=frames or FRAMES_A_LEG * longest,
    )


def draw_pages(
    generator: Generator, film: Film, truncation: float | None, numbers: Sequence[int]
) -> Iterator[Image.Image]:
    """The film's pages of the given numbers, with the class beside each row; of moving classes the nearest."""
    names = [generator.class_names[number] for number in film.classes]
    class_times = choose_times(len(film.classes), film.count, loop=True)
    for first in range(0, len(numbers), BATCH):
        chosen = torch.tensor(numbers[first : first + BATCH])
        z, labels = _lay_out(generator, film, chosen)  # (F, T, Z), (F, T, L)
        tiles = z.shape[1]
        images = torch.cat(
            list(draw_images(generator, squeeze_latents(z.flatten(0, 1), truncation), labels.flatten(0, 1)))
        )
        for number, page in zip(chosen.tolist(), images.split(tiles), strict=True):
            nearest = names[int(class_times[number].round()) % len(names)]
            shown = [nearest] if film.moving_classes else names
            yield draw_page(page, film.columns, shown, fold=not film.moving_classes, margin_names=names)


def _lay_out(generator: Generator, film: Film, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and class weights of all tiles of these frames."""
    way_points, columns = film.z.shape[:2]
    times = choose_times(way_points, film.count, loop=True)[frames]
    z = torch.stack([follow_latents(film.z[:, column], times) for column in range(columns)], dim=1)
    if film.moving_classes:
        class_times = choose_times(len(film.classes), film.count, loop=True)[frames]
        labels = follow_classes(film.classes, generator.num_classes, class_times)
        return z, labels[:, None].expand(-1, columns, -1)
    rows = len(film.classes)
    still = follow_classes(film.classes, generator.num_classes, torch.arange(rows, dtype=torch.float64))  # (R, L)
    labels = still.repeat_interleave(columns, dim=0).expand(len(frames), -1, -1)
    return z.repeat(1, rows, 1), labels
