"""Drawing what a `SampleConfig` asks for: a grid, a film, or a folder of single images.

Legend: R rows, C columns, Z latent size, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gan.animation import check_film, write_film
from gan.generator import Generator
from gan.interpolation import choose_times, follow_classes, follow_latents
from gan.pictures import write_grid
from gan.sample_config import (
    COUNT,
    DEFAULT_STATS_BATCH_SIZE,
    DEFAULT_STATS_BATCHES,
    FILM_COUNT,
    SampleConfig,
    check_samples,
)
from gan.sample_films import draw_pages, plan_film
from gan.sample_folder import write_samples
from gan.sampling import (
    draw_images,
    draw_latents,
    find_classes,
    load_generator,
    squeeze_latents,
    stand_statistics,
)
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.records import hash_file
from shared_attn.runtime.weights import find_weights

MOST_CLASSES_PASSED = 10  # way points where --classes names none
FPS = 25


def draw_samples(config: SampleConfig) -> str:
    """Draw and write; returns a line that says what was written.

    Raises:
        ValueError, OSError: in one line, for a user's mistake or a file that cannot be written.
    """
    form = check_samples(config)
    out = Path(config.out)
    if form == "film":
        check_film(out)
    generator = load_generator(config.weights, create_fabric(config.device, "fp32").device)
    classes = find_classes(config.classes, generator.class_names) or list(range(generator.num_classes))
    if config.interpolate_classes:
        if len(classes) < 2:
            raise ValueError(f"--interpolate-classes: {config.weights} has a single class")
        classes = classes if config.classes else classes[:MOST_CLASSES_PASSED]
    if form != "folder":
        out.parent.mkdir(parents=True, exist_ok=True)  # a mistake is told before any work
    statistics = None
    if config.stats:
        batches = config.stats_batches or DEFAULT_STATS_BATCHES
        batch_size = config.stats_batch_size or DEFAULT_STATS_BATCH_SIZE
        stand_statistics(generator, batches=batches, batch_size=batch_size, truncation=config.truncation)
        statistics = [batches, batch_size]
    if form == "folder":
        weights = hash_file(find_weights(config.weights))
        origin = {"weights": weights, "truncation": config.truncation, "stats": statistics}
        written, kept = write_samples(
            out, generator, list_samples(config, classes), truncation=config.truncation, origin=origin
        )
        return f"{out}: {written} images written" + (f", {kept} kept" if kept else "")
    if form == "film":
        return _write_film(out, generator, config, classes)
    return _write_grid(out, generator, config, classes)


def list_samples(config: SampleConfig, classes: Sequence[int]) -> list[tuple[int, int]]:
    """(seed, class) of a folder's images: named seeds of each class, or consecutive seeds, classes in turn.

    With `--seed 0` and all classes they are the samples that `scripts/evaluate_gan.py` judges.
    """
    if config.seeds:
        return [(seed, label) for seed in config.seeds for label in classes]
    seeds = range(config.seed, config.seed + (config.count or COUNT))
    return [(seed, classes[seed % len(classes)]) for seed in seeds]


def plan_grid(
    generator: Generator, config: SampleConfig, classes: Sequence[int]
) -> tuple[Tensor, Tensor, int, list[str]]:
    """Latents (N, Z) before truncation, class weights (N, L), images a row, and names of the rows."""
    L, count = generator.num_classes, config.count or COUNT
    names = generator.class_names
    if config.interpolate_classes:
        # Across from class to class, a seed a row; with --interpolate down by class, across from seed to seed.
        rows = len(config.seeds) if config.seeds and not config.interpolate else max(1, math.isqrt(count))
        steps = _meet_way_points(len(classes), rows if config.interpolate else -(-count // rows))
        times = choose_times(len(classes), steps, loop=False)
        weights = follow_classes(classes, L, times)  # (steps, L)
        if not config.interpolate:
            seeds = config.seeds or range(config.seed, config.seed + rows)
            z = draw_latents(seeds, generator.latent_dim)
            return z.repeat_interleave(steps, 0), weights.repeat(rows, 1), steps, [f"seed {seed}" for seed in seeds]
        rows = steps
        shown = [names[classes[int(time)]] if time == time.round() else "" for time in times]
    else:
        columns = len(config.seeds) or -(-count // len(classes))
        rows = len(classes) if config.seeds else -(-count // columns)
        weights = follow_classes(classes, L, torch.arange(rows, dtype=torch.float64))
        shown = [names[number] for number in classes[:rows]]
    if config.interpolate:
        points = draw_latents(config.seeds or (config.seed, config.seed + 1), generator.latent_dim)
        columns = _meet_way_points(len(points), -(-count // rows))
        row = follow_latents(points, choose_times(len(points), columns, loop=False))
    else:
        row = draw_latents(config.seeds or range(config.seed, config.seed + columns), generator.latent_dim)
    return row.repeat(rows, 1), weights.repeat_interleave(columns, dim=0), columns, shown


def _meet_way_points(way_points: int, steps: int) -> int:
    """About `steps`, so that equal steps meet every way point; at least all way points, but one step stays one."""
    legs = way_points - 1
    return 1 if steps == 1 and legs == 1 else legs * max(1, (steps - 1) // legs) + 1


def _write_grid(out: Path, generator: Generator, config: SampleConfig, classes: Sequence[int]) -> str:
    z, labels, columns, names = plan_grid(generator, config, classes)
    if not (config.interpolate or config.interpolate_classes or config.seeds):
        z, labels = z[: config.count or COUNT], labels[: config.count or COUNT]
    images = torch.cat(list(draw_images(generator, squeeze_latents(z, config.truncation), labels)))
    write_grid(out, images, columns, names, fold=not config.interpolate_classes)
    per_row = "a row" if config.interpolate_classes else "a class"
    return f"{out}: {len(images)} images, {columns} {per_row}"


def _write_film(out: Path, generator: Generator, config: SampleConfig, classes: Sequence[int]) -> str:
    from tqdm import tqdm

    film = plan_film(
        generator,
        count=config.count or FILM_COUNT,
        seeds=config.seeds,
        seed=config.seed,
        classes=classes,
        move_latents=config.interpolate or not config.interpolate_classes,
        move_classes=config.interpolate_classes,
        frames=config.frames,
    )
    fps = config.fps or FPS
    with tqdm(total=film.count, unit="frame", desc="filming", dynamic_ncols=True, delay=2) as bar:

        def pages(numbers: Sequence[int]):
            for page in draw_pages(generator, film, config.truncation, numbers):
                if len(numbers) == film.count:  # not those a palette is chosen from
                    bar.update()
                yield page

        write_film(out, pages, film.count, fps)
    return f"{out}: {film.count} frames, {film.count / fps:.3g} s"
