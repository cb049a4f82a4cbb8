"""Learning curves in bf16 beside fp32, of a small EAT and a small EAGAN on the embedded shapes: a few minutes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import command_line

from gan.presets import PRESETS as GAN_PRESETS
from pointcloud.presets import PRESETS as POINT_PRESETS

# The published GAN with one step of each network, at sizes that keep a step at some hundredths of a second on a CPU.
RECIPE = {"data": "shapes", "discriminator_steps": 1, "attention_spectral_norm": False}
RATES = {"generator_lr": 4e-4, "discriminator_lr": 8e-4, "betas": (0.0, 0.99), "decay_from": 0.5, "ema_decay": 0.995}
SIZES = {"generator_width": 4, "discriminator_width": 4, "batch_size": 8, "log_every": 5, "features": "none"}
GAN: dict[str, Any] = {**RECIPE, **RATES, **SIZES}
POINTS: dict[str, Any] = {
    "num_points": 64,
    "embed_channels": (16, 32),
    "neighbour_channels": (32, 64),
    "num_centres": (32, 16),
    "num_neighbours": 8,
    "fuse_channels": 128,
    "head_channels": (64, 32),
    "validation": 0.0,
    "norm_clouds": 0,
}


@dataclass(frozen=True)
class Options:
    steps: int = 300
    """steps of the GAN's training"""
    epochs: int = 5
    """passes over the shapes of the point network's"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train"""
    json: Path | None = None
    """file for the record"""


def compare(options: Options, folder: Path) -> list[dict[str, Any]]:
    from gan.training import train as train_gan
    from pointcloud.training import train as train_points
    from shared_attn.runtime.learning_curves import compare_precisions

    images = options.steps * GAN["batch_size"]
    schedule = {"images": images, "evaluate_every": images, "checkpoint_every": images, "device": options.device}
    gan = replace(GAN_PRESETS["eagan-cifar10"], **GAN, **schedule)
    points = replace(POINT_PRESETS["eat-shapes-small"], **POINTS, epochs=options.epochs, device=options.device)
    rows = compare_precisions("EAGAN", train_gan, gan, ("discriminator_loss", "generator_loss"), folder)
    return rows + compare_precisions("EAT", train_points, points, ("train_loss", "train_accuracy"), folder)


def main(options: Options) -> None:
    command_line.check_positive(options, "steps", "epochs")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(options, Path(folder))
    for row in rows:
        print(f"{row['training']} {row['curve']}: {row['distance']:.3f} apart, two seeds {row['seed_distance']:.3f}")
    if options.json is not None:
        from shared_attn.runtime.learning_curves import write_comparison

        write_comparison(options.json, options, rows, time.monotonic() - start)


if __name__ == "__main__":
    chosen = command_line.parse(Options, description=__doc__ or "")
    command_line.run(lambda: main(chosen))
