"""Draws the README's picture from shipped weights: samples of EAGAN beside shapes that EAT cut into parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import command_line
from command_line import ROOT


@dataclass(frozen=True)
class Overview:
    out: Path = ROOT / "results" / "figures" / "first.png"
    """the PNG to write"""
    gan: str = "eagan-cifar10-small"
    """weights of a generator: a run's folder, a file, or a shipped name"""
    parts: str = "eat-shapes-parts"
    """weights of a part segmenter trained on the embedded shapes"""


def describe(overview: Overview) -> str:
    """What the picture shows, by content: written into the file, so that a stale one is known."""
    from shared_attn.runtime.records import hash_file
    from shared_attn.runtime.weights import find_weights

    return " ".join(hash_file(find_weights(source)) for source in (overview.gan, overview.parts))


def draw(overview: Overview) -> None:
    """Eight samples of each of eight classes on the left, eight segmented test shapes on the right."""
    import tempfile

    import torch
    from PIL import Image, PngImagePlugin

    from gan.pictures import write_grid
    from gan.sampling import draw_images, draw_latents, load_generator
    from pointcloud.gallery import draw_test_segmentations
    from shared_attn.runtime.files import atomic_write

    generator = load_generator(overview.gan)
    classes = torch.arange(min(8, generator.num_classes))
    z = draw_latents(range(8), generator.latent_dim).repeat(len(classes), 1)
    images = torch.cat(list(draw_images(generator, z, classes.repeat_interleave(8))))
    with tempfile.TemporaryDirectory() as folder:
        samples, parts = Path(folder) / "samples.png", Path(folder) / "parts"
        write_grid(samples, images, 8, [generator.class_names[number] for number in classes])
        draw_test_segmentations(overview.parts, parts)
        panels = [Image.open(path).convert("RGB") for path in (samples, parts.with_suffix(".png"))]
    height = 560
    panels = [panel.resize((round(panel.width * height / panel.height), height)) for panel in panels]
    page = Image.new("RGB", (sum(panel.width for panel in panels) + 16, height), "white")
    page.paste(panels[0], (0, 0))
    page.paste(panels[1], (panels[0].width + 16, 0))
    note = PngImagePlugin.PngInfo()
    note.add_text("Description", describe(overview))
    with atomic_write(overview.out) as file:
        page.save(file, format="PNG", optimize=True, pnginfo=note)


if __name__ == "__main__":
    options = command_line.parse(Overview, description=__doc__ or "")
    command_line.run(lambda: draw(options))
