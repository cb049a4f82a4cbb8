"""Configuration of drawing samples: every flag of `scripts/sample_gan.py`, and the form that --out asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Form = Literal["grid", "film", "folder"]
COUNT, FILM_COUNT = 64, 16
MOST_FRAMES_A_SECOND = 50  # the shortest time a GIF's frame is shown everywhere is 20 ms
DEFAULT_STATS_BATCHES, DEFAULT_STATS_BATCH_SIZE = 16, 128


@dataclass(frozen=True)
class SampleConfig:
    """What to draw."""

    weights: str
    """a run's folder, a .safetensors file, or the name of shipped weights"""
    out: str = "grid.png"
    """file.png: a grid with class rows; file.gif or file.mp4: a film of interpolations, which loops; folder/: single
    class/seed000123.png, by the thousand; the same call again goes on where it stopped"""
    count: int | None = None
    """images in all, shared by the classes, 64 by default; of a film about so many in each frame, 16 by default"""
    classes: tuple[str, ...] = ()
    """names or numbers of classes; none: all (between classes: the first ten)"""
    truncation: float | None = None
    """bound of the latent coordinates, for example 0.7: fewer failures, less variety; best with --stats"""
    seed: int = 0
    """each row's first image is drawn from this seed, the next from the next one; in a folder the classes take turns"""
    seeds: tuple[int, ...] = ()
    """these seeds, of every class, in place of --seed and --count; way points of an interpolation"""
    interpolate: bool = False
    """pass from seed to seed on the great circle: along each row of a grid, in time in a film"""
    interpolate_classes: bool = False
    """pass from class to class: along the rows of a grid, or down its columns with --interpolate; in time in a film"""
    frames: int | None = None
    """a film's frames; by default 24 from one way point to the next"""
    fps: int | None = None
    """a film's frames a second, 25 by default"""
    stats: bool = False
    """standing statistics: estimate batch norm's statistics anew, from latents with this truncation, before drawing"""
    stats_batches: int | None = None
    """batches that --stats estimates from, 16 by default"""
    stats_batch_size: int | None = None
    """images of such a batch, 128 by default"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to draw"""


def find_form(out: str) -> Form:
    """What --out asks for.

    Raises:
        ValueError: for a file of another kind.
    """
    path = Path(out)
    if out.endswith(("/", "\\")) or path.is_dir():
        return "folder"
    suffix = path.suffix.lower()
    if suffix == ".png":
        return "grid"
    if suffix in (".gif", ".mp4"):
        return "film"
    if suffix:
        raise ValueError(f"--out {out}: expected a file .png (a grid), .gif or .mp4 (a film), or a folder/")
    return "folder"


def check_samples(config: SampleConfig) -> Form:
    """Refuse values that cannot be drawn; returns the form of the output.

    Raises:
        ValueError: in one line that names the flag, the value and what was expected.
    """
    form = find_form(config.out)
    for name in ("count", "frames", "fps", "stats_batches", "stats_batch_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if config.truncation is not None and not (config.truncation > 0 and math.isfinite(config.truncation)):
        raise ValueError(f"--truncation {config.truncation}: expected more than 0")
    for flag, seed in [("--seed", config.seed), *(("--seeds", seed) for seed in config.seeds)]:
        if seed < 0:
            raise ValueError(f"{flag} {seed}: expected 0 or more")
    if not config.stats:
        for name in ("stats_batches", "stats_batch_size"):
            if getattr(config, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: has a meaning only with --stats")
    _check_motion(config, form)
    return form


def _check_motion(config: SampleConfig, form: Form) -> None:
    if form != "film":
        for name in ("frames", "fps"):
            if getattr(config, name) is not None:
                raise ValueError(f"--{name} {getattr(config, name)}: has a meaning only for a .gif or .mp4")
    if config.fps is not None and config.fps > MOST_FRAMES_A_SECOND:
        raise ValueError(f"--fps {config.fps}: expected at most {MOST_FRAMES_A_SECOND}")
    moves = config.interpolate or config.interpolate_classes
    if form == "folder" and moves:
        raise ValueError(f"--out {config.out}: an interpolation needs a file, .png (a grid), .gif or .mp4 (a film)")
    between_seeds = config.interpolate or (form == "film" and not moves)
    if between_seeds and len(config.seeds) == 1:
        raise ValueError(f"--seeds {config.seeds[0]}: an interpolation needs at least two")
    along = between_seeds or (form == "grid" and config.interpolate_classes)  # then --count says how finely
    if config.seeds and config.count is not None and not along:
        raise ValueError(f"--count {config.count}: --seeds says how many; expected one of the two")
    if config.interpolate_classes and len(config.classes) == 1:
        raise ValueError(f"--classes {config.classes[0]}: an interpolation between classes needs at least two")
