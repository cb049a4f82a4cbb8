"""Drawing what a `SampleConfig` asks for: a grid, a film, or a folder of single images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gan.generator import Generator
from gan.pictures import write_grid
from gan.samples.animation import check_film, write_film
from gan.samples.films import draw_pages, plan_film
from gan.samples.folder import write_samples
from gan.samples.grids import plan_grid
from gan.samples.options import (
    COUNT,
    DEFAULT_STATS_BATCH_SIZE,
    DEFAULT_STATS_BATCHES,
    FILM_COUNT,
    SampleConfig,
    check_samples,
)
from gan.sampling import (
    draw_images,
    find_classes,
    load_generator,
    squeeze_latents,
    stand_statistics,
)
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.records import hash_file
from shared_attn.runtime.weights import find_weights

if TYPE_CHECKING:
    from PIL import Image

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
        with _naming(out):
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
    with _naming(out):
        write = _write_film if form == "film" else _write_grid
        return write(out, generator, config, classes)


@contextlib.contextmanager
def _naming(out: Path) -> Iterator[None]:
    """A full disk's error does not say which file."""
    try:
        yield
    except OSError as error:
        if str(out) in str(error) and error.errno is None:
            raise
        raise type(error)(f"--out {out}: cannot be written ({error.strerror or error})") from error


def list_samples(config: SampleConfig, classes: Sequence[int]) -> list[tuple[int, int]]:
    """(seed, class) of a folder's images: named seeds of each class, or consecutive seeds, classes in turn.

    With `--seed 0` and all classes they are the samples that `scripts/evaluate_gan.py` judges.
    """
    if config.seeds:
        return [(seed, label) for seed in config.seeds for label in classes]
    seeds = range(config.seed, config.seed + (config.count or COUNT))
    return [(seed, classes[seed % len(classes)]) for seed in seeds]


def _write_grid(out: Path, generator: Generator, config: SampleConfig, classes: Sequence[int]) -> str:
    grid = plan_grid(generator, config, classes)
    images = torch.cat(list(draw_images(generator, squeeze_latents(grid.z, config.truncation), grid.labels)))
    fold = not grid.column_names
    write_grid(out, images, grid.columns, grid.row_names, column_names=grid.column_names, fold=fold)
    per_row = "a row" if config.interpolate_classes else "a class"
    return f"{out}: {len(images)} images, {grid.columns} {per_row}"


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

        def pages(numbers: Sequence[int]) -> Iterator[Image.Image]:
            for page in draw_pages(generator, film, config.truncation, numbers):
                if len(numbers) == film.count:  # not those a palette is chosen from
                    bar.update()
                yield page

        write_film(out, pages, film.count, fps)
    return f"{out}: {film.count} frames, {film.count / fps:.3g} s"
