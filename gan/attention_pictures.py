"""What the memory slots of a generator's external attention attend to: heat maps over its samples, one a slot.

Legend: R rows (samples), S memory slots shown, H W pixels, h w the attention's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan.generator import Generator
from gan.sampling import BATCH, draw_images, draw_latents, find_classes
from shared_attn.attention_maps import Slot, choose_slots, record_attention_maps, select_layer, select_slots
from shared_attn.runtime.figures import draw_percent_scale, new_figure, save_figure

TILE, GAP = 1.25, 0.06  # inches of a tile's side, and between tiles
COLOURS = "inferno"
FAINT, STRONG = 0.35, 0.85  # opacity over the grey sample of no weight and of the brightest
BRIGHTEST = 0.995  # this quantile of a slot's weights has the brightest colour


def draw_image_attention(
    generator: Generator,
    path: Path,
    *,
    count: int = 8,
    classes: Sequence[str] = (),
    seed: int = 0,
    num_slots: int = 5,
    slots: Sequence[int] = (),
    heads: Sequence[int] = (),
    layer: int | None = None,
) -> list[Slot]:
    """Write a PNG with a row a sample: the sample, then the weight that each slot has in it.

    Args:
        generator: of `gan.load_generator`.
        path: the PNG.
        count: samples in all, shared evenly by the classes; 1 to 64.
        classes: names or numbers; none: all.
        seed: of each class's first sample, as in `scripts/sample_gan.py`.
        num_slots, slots, heads: see `shared_attn.attention_maps.choose_slots`; slots are chosen on these samples.
        layer: of several attention layers, from 1; the last by default.

    Returns:
        The slots shown.

    Raises:
        ValueError: a value out of range, or a generator without external attention.
    """
    if not 1 <= count <= BATCH:
        raise ValueError(f"--count {count}: expected 1 to {BATCH}")
    numbers = find_classes(classes, generator.class_names) or list(range(generator.num_classes))
    each = -(-count // len(numbers))
    z = draw_latents(range(seed, seed + each), generator.latent_dim).repeat(len(numbers), 1)[:count]
    labels = torch.tensor(numbers).repeat_interleave(each)[:count]
    with record_attention_maps(generator) as maps:
        images = torch.cat(list(draw_images(generator, z, labels))).cpu()
    attention = select_layer(maps, layer)
    values = attention.values[:count].cpu()
    shown = choose_slots(values, num_slots, slots=slots, heads=heads)
    assert attention.grid is not None and len(attention.grid) == 2, "feature maps have a grid"
    heat = select_slots(values, shown).unflatten(1, attention.grid).permute(0, 3, 1, 2)  # (R, S, h, w)
    write_heat_maps(path, images, heat, shown, [generator.class_names[number] for number in labels.tolist()])
    return shown


def write_heat_maps(
    path: Path, images: Tensor, heat: Tensor, names: Sequence[object], row_names: Sequence[str]
) -> None:
    """Write images (R, 3, H, W) uint8 beside their heat maps (R, S, h, w), with a scale below each column, as a PNG.

    Each column's colours go from 0 to the same weight in all rows, so that rows can be compared; the grey sample shines
    through, most where the weight is small.
    """
    rows, columns = heat.shape[:2]
    left, top, bottom = 0.15 + 0.09 * max(map(len, row_names)), 0.35, 0.5
    width, height = left + (columns + 1) * (TILE + GAP) + 0.1, top + rows * (TILE + GAP) + bottom
    figure, _ = new_figure(width, height, axes=False)

    def place(column: int, y: float, tall: float) -> tuple[float, float, float, float]:
        return (left + column * (TILE + GAP)) / width, y / height, TILE / width, tall / height

    fine = F.interpolate(heat, size=images.shape[2:], mode="bilinear", align_corners=False)
    tops = [max(float(heat[:, column].quantile(BRIGHTEST)), 1e-12) for column in range(columns)]
    titles = ["sample", *map(str, names)]
    for row in range(rows):
        sample = images[row].permute(1, 2, 0).numpy()
        tiles = [sample, *(_overlay(sample, fine[row, column].numpy() / tops[column]) for column in range(columns))]
        for column, tile in enumerate(tiles):
            axes = figure.add_axes(place(column, bottom + (rows - 1 - row) * (TILE + GAP), TILE))
            axes.imshow(tile, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(titles[column], fontsize=10, pad=4)
            if column == 0:
                axes.set_ylabel(row_names[row], rotation=0, ha="right", va="center", fontsize=10)
    for column, brightest in enumerate(tops, start=1):
        draw_percent_scale(figure, place(column, bottom - 0.13, 0.07), brightest, COLOURS)
    figure.text((left + TILE) / width, (bottom - 0.1) / height, "weight", ha="right", va="center", fontsize=9)
    save_figure(figure, path)


def _overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The heat (H, W), 1 the brightest, in colours over the grey image (H, W, 3) uint8: (H, W, 3) in [0, 1]."""
    from matplotlib import colormaps

    heat = heat.clip(0, 1)[..., None]
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    opacity = FAINT + (STRONG - FAINT) * heat
    return (1 - opacity) * grey[..., None] + opacity * colormaps[COLOURS](heat[..., 0])[..., :3]
