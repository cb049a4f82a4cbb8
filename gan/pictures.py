"""Sample grids as PNG files.

Legend: R rows, C columns, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.runtime.files import atomic_write

GAP = 2
LEGIBLE = 48  # pixels a tile should have for a person


def tile(images: Tensor, columns: int) -> Tensor:
    """Lay images (N, 3, H, W) uint8 out in rows of `columns`: (3, height, width) uint8, with white between."""
    N, _, H, W = images.shape
    rows = -(-N // columns)
    scale = max(1, round(LEGIBLE / H))
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    images = F.pad(images, (0, GAP, 0, GAP), value=255)
    blank = images.new_full((rows * columns - N, *images.shape[1:]), 255)
    grid = torch.cat([images, blank]).unflatten(0, (rows, columns))  # (R, C, 3, H, W)
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (3, R H, C W)


def write_grid(path: Path, images: Tensor, columns: int, row_names: Sequence[str] = ()) -> Tensor:
    """Write images (N, 3, H, W) uint8 as a PNG with a name beside each row; returns the tiles (3, height, width)."""
    from PIL import Image, ImageDraw, ImageFont

    tiles = tile(images.cpu(), columns)
    height = tiles.shape[1] // -(-len(images) // columns)
    font = ImageFont.load_default(size=14)
    margin = round(max((font.getlength(name) for name in row_names), default=-12)) + 12
    page = Image.new("RGB", (margin + tiles.shape[2], tiles.shape[1]), "white")
    page.paste(Image.fromarray(tiles.permute(1, 2, 0).contiguous().numpy()), (margin, 0))
    pen = ImageDraw.Draw(page)
    for row, name in enumerate(row_names):
        pen.text((margin - 6, row * height + height // 2), name, fill="black", font=font, anchor="rm")
    with atomic_write(path) as file:
        page.save(file, format="PNG")
    return tiles
