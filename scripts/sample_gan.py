"""Draw images: python scripts/sample_gan.py --weights runs/a --out grid.png --classes cat dog"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import command_line


@dataclass(frozen=True)
class SampleConfig:
    """What to draw."""

    weights: str
    """a run's folder, a .safetensors file, or the name of shipped weights"""
    out: Path = Path("grid.png")
    """the PNG to write; with one class a row"""
    count: int = 64
    """images in all, shared evenly by the classes"""
    classes: tuple[str, ...] = ()
    """names or numbers of classes; none: all"""
    truncation: float | None = None
    """bound of the latent coordinates, for example 0.7: fewer failures, less variety"""
    seed: int = 0
    """each row's first image is drawn from this seed, the next from the next one"""
    interpolate: bool = False
    """each row passes from the row's first seed to the next in equal steps"""
    device: str = "auto"
    """auto, cpu or cuda"""


def sample(config: SampleConfig) -> None:
    """Draw and write the grid."""
    import torch

    from gan.pictures import write_grid
    from gan.sampling import draw_images, draw_latents, find_classes, interpolate_latents, load_generator
    from shared_attn.runtime.launch import create_fabric

    if config.count < 1:
        raise ValueError(f"--count {config.count}: expected at least 1")
    if config.truncation is not None and config.truncation <= 0:
        raise ValueError(f"--truncation {config.truncation}: expected more than 0")
    if config.out.suffix.lower() != ".png":
        raise ValueError(f"--out {config.out}: expected a file that ends in .png")
    generator = load_generator(config.weights, create_fabric(config.device, "fp32").device)
    classes = find_classes(config.classes, generator.class_names) or list(range(generator.num_classes))
    columns = -(-config.count // len(classes))
    if config.interpolate:
        ends = draw_latents(range(config.seed, config.seed + 2), generator.latent_dim, config.truncation)
        row = interpolate_latents(ends[0], ends[1], columns)
    else:
        row = draw_latents(range(config.seed, config.seed + columns), generator.latent_dim, config.truncation)
    z = row.repeat(len(classes), 1)[: config.count]
    labels = torch.tensor(classes).repeat_interleave(columns)[: config.count]
    images = torch.cat(list(draw_images(generator, z, labels)))
    rows = -(-config.count // columns)
    write_grid(config.out, images, columns, [generator.class_names[number] for number in classes[:rows]])
    print(f"{config.out}: {config.count} images, {columns} a class")


def main() -> None:
    config = command_line.parse(SampleConfig, description=__doc__ or "")
    command_line.run(lambda: sample(config))


if __name__ == "__main__":
    main()
