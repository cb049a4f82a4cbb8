"""Sample grids as pages and PNG files.

Legend: N images, R rows, C columns, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.runtime.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

GAP = 2
LEGIBLE = 48  # pixels a tile should have for a person
HEAD = 18  # pixels of a line of names
TALLEST = 1.5  # a page's height by its width, past which its rows stand in several blocks side by side


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


def choose_blocks(rows: int, height: int, width: int) -> int:
    """Blocks to stand `rows` rows of height x width pixels in, so that the page is not much taller than wide."""
    fits = (blocks for blocks in range(1, rows) if -(-rows // blocks) * height <= TALLEST * blocks * width)
    return next(fits, rows)


def draw_page(
    images: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    *,
    column_names: Sequence[str] = (),
    fold: bool = False,
    margin_names: Sequence[str] = (),
) -> Image.Image:
    """Images (N, 3, H, W) uint8 in rows, each with its name on the left.

    Args:
        images: in order of rows.
        columns: images a row.
        row_names: of the rows, from the top; none: no margin.
        column_names: of the columns, above the first row; an empty one leaves its place to its neighbours.
        fold: stand the rows of a page that would be very tall in blocks side by side.
        margin_names: names that the margin is wide enough for too, so that pages of a film have one size.
    """
    from PIL import Image, ImageDraw, ImageFont

    tiles = tile(images.cpu(), columns)
    rows = -(-len(images) // columns)
    height = tiles.shape[1] // rows
    font = ImageFont.load_default(size=14)
    margin = round(max((font.getlength(name) for name in (*row_names, *margin_names)), default=-12)) + 12
    width = margin + tiles.shape[2]
    blocks = choose_blocks(rows, height, width) if fold else 1
    deep = -(-rows // blocks)  # rows a block
    head = HEAD if column_names else 0
    page = Image.new("RGB", (-(-rows // deep) * width, head + deep * height), "white")
    sheet = Image.fromarray(tiles.permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(page)
    for row in range(rows):
        left, top = row // deep * width, head + row % deep * height
        page.paste(sheet.crop((0, row * height, sheet.width, (row + 1) * height)), (left + margin, top))
        if row < len(row_names):
            place = (left + margin - 6, top + height // 2)
            pen.text(place, row_names[row], fill="black", font=font, anchor="rm")
    pitch = tiles.shape[2] // columns
    for column, name in enumerate(column_names):
        half = font.getlength(name) / 2
        middle = min(max(margin + column * pitch + (pitch - GAP) / 2, half), page.width - half)
        pen.text((middle, head - 4), name, fill="black", font=font, anchor="ms")
    return page


def write_grid(
    path: Path,
    images: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    *,
    column_names: Sequence[str] = (),
    fold: bool = False,
) -> Tensor:
    """Write images (N, 3, H, W) uint8 as a PNG, see `draw_page`; returns the tiles in one block (3, height, width)."""
    page = draw_page(images, columns, row_names, column_names=column_names, fold=fold)
    with atomic_write(path) as file:
        page.save(file, format="PNG")
    return tile(images.cpu(), columns)
