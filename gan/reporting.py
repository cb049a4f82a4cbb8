"""What a run leaves behind beside its checkpoints: evaluations, sample grids, weights, and its record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from gan.datasets import ImageSet
from gan.discriminator import Discriminator
from gan.evaluation import DEFAULT_METRICS, evaluate
from gan.features import FeatureNetwork
from gan.generator import Generator
from gan.pictures import write_grid
from gan.presets import GanConfig
from gan.sampling import KIND, draw_images, draw_latents, finish_generator
from shared_attn.complexity import count_multiply_adds, count_parameters
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.records import write_record
from shared_attn.runtime.weights import save_weights

LOGGED = ("discriminator_loss", "real_logit", "fake_logit", "discriminator_accuracy", "generator_loss")
GRID_ROWS, GRID_COLUMNS = 16, 10  # at most so many classes, samples of each


def grid_path(config: GanConfig, shown: int) -> Path:
    """The sample grid of an evaluation."""
    return config.out / "samples" / f"{shown:010d}.png"


def assess(
    config: GanConfig,
    average: Generator,
    models: dict[str, dict[str, Any]],
    data: ImageSet,
    network: FeatureNetwork | None,
    progress: Progress,
) -> None:
    """Evaluate the averaged generator as it is now: a sample grid (a row a class), distances, and its weights."""
    finished = finish_generator(average, models["generator"], config.seed)
    rows = min(len(data.class_names), GRID_ROWS)
    z = draw_latents(range(GRID_COLUMNS), finished.latent_dim).repeat(rows, 1)
    labels = torch.arange(rows).repeat_interleave(GRID_COLUMNS)
    images = torch.cat(list(draw_images(finished, z, labels)))
    grid = write_grid(grid_path(config, progress.shown), images, GRID_COLUMNS, data.class_names[:rows])
    progress.image("samples", grid)

    values: dict[str, float] = {}
    if network is not None:
        count = config.evaluation_samples
        z = draw_latents(range(count), finished.latent_dim)
        samples = draw_images(finished, z, torch.arange(count) % len(data.class_names))
        metrics = DEFAULT_METRICS[network.name]
        values = evaluate(samples, count, data, network, metrics, references=config.evaluation_references)
        progress.log(**values)
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        progress.message(f"{progress.shown:,} images: {told}")
    header = {
        "kind": KIND,
        "model": models["generator"],
        "class_names": data.class_names,
        "data": data.describe(),
        "metrics": values,
        "images": progress.shown,
    }
    save_weights(config.out / "weights.safetensors", finished.state_dict(), header)


def count_costs(models: dict[str, dict[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters, and multiply-adds of a forward of one image, of both networks."""
    with torch.device("meta"), torch.no_grad():
        generator = Generator(**{**models["generator"], "spectral_norm": False}).eval()
        discriminator = Discriminator(**{**models["discriminator"], "spectral_norm": False}).eval()
        z, label = torch.empty(1, generator.latent_dim), torch.empty(1, dtype=torch.long)
        image = torch.empty(1, 3, generator.image_size, generator.image_size)
        classes = torch.empty(1, generator.num_classes)
        multiply_adds = {
            "generator": count_multiply_adds(generator, z, classes),
            "discriminator": count_multiply_adds(discriminator, image, label),
        }
    parameters = {"generator": count_parameters(generator), "discriminator": count_parameters(discriminator)}
    return parameters, multiply_adds


def write_run_record(
    config: GanConfig, models: dict[str, dict[str, Any]], data: ImageSet, progress: Progress, device: torch.device
) -> None:
    """Write `record.json`: the last evaluation's metrics, their curve over the run, and what the networks cost."""
    parameters, multiply_adds = count_costs(models)
    other = {"shown", "seconds", *LOGGED}
    evaluations = [line for line in read_metrics(config.out) if line.keys() - other]
    names = sorted(evaluations[-1].keys() - other) if evaluations else []
    write_record(
        config.out / "record.json",
        name=f"{config.attention} attention, {config.image_size} pixels, on {data.name}",
        kind="gan",
        config=dataclasses.asdict(config),
        data=data.describe(),
        seeds=[config.seed],
        metrics={name: evaluations[-1][name] for name in names},
        parameters=parameters,
        multiply_adds=multiply_adds,
        seconds=progress.seconds,
        device=device.type,
        curves={name: [[line["shown"], line[name]] for line in evaluations if name in line] for name in names},
        note=f"last averaged weights; sample grid {grid_path(config, progress.shown).relative_to(config.out)}",
    )
