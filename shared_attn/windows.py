"""Windows of a layout of tokens, whatever its size: padded to whole windows, cut, and put together again.

Legend: B batch, N tokens, C channels, H W grid, P windows of a sample, T tokens of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Windows", "z_order"]


class Windows:
    """How a layout is cut into windows of `size` x `size` tokens, or a sequence into runs of size^2.

    A window is no longer than the layout in any dimension. Where windows do not fill the layout it is padded at its
    end. A size that is only known as a symbol, as in a graph for any number of tokens, is padded (perhaps by nothing)
    and never shortens a window.

    Args:
        grid: (H, W), or (N,) for a sequence, which is a column with windows one token wide.
        size: tokens along a side of a window.
    """

    def __init__(self, grid: tuple[int, ...], size: int) -> None:
        self.grid = grid if len(grid) == 2 else (grid[0], 1)
        side = (size, size) if len(grid) == 2 else (size * size, 1)
        self.shape = tuple(
            s if isinstance(n, torch.SymInt) else min(n, s) for n, s in zip(self.grid, side, strict=True)
        )
        self.counts = tuple((n + s - 1) // s for n, s in zip(self.grid, self.shape, strict=True))
        self.padding = tuple(-n % s for n, s in zip(self.grid, self.shape, strict=True))
        self.pads = any(isinstance(n, torch.SymInt) or n > 0 for n in self.padding)

    @property
    def length(self) -> int:
        """T, the tokens of a window."""
        return math.prod(self.shape)

    def plane(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H', W', C) of whole windows, zeros after the layout's end."""
        plane = x.reshape(x.shape[0], *self.grid, -1)
        return F.pad(plane, (0, 0, 0, self.padding[1], 0, self.padding[0])) if self.pads else plane

    def split(self, plane: Tensor) -> Tensor:
        """(B, H', W', C) -> (B P, T, C), a view where windows are one token wide. Windows go row by row."""
        C = plane.shape[-1]
        (h, w), (_, across) = self.shape, self.counts
        if self.grid[1] == 1:
            return plane.reshape(-1, h, C)
        cut = plane.reshape(plane.shape[0], -1, h, across, w, C).transpose(2, 3)  # (B, H' / h, W' / w, h, w, C)
        return cut.reshape(-1, h * w, C)

    def merge(self, windows: Tensor, batch: int) -> Tensor:
        """(B P, T, C) -> (B, N, C): the inverse of `split` and `plane`."""
        return self.crop(self.join(windows, batch))

    def join(self, windows: Tensor, batch: int) -> Tensor:
        """(B P, T, C) -> (B, H', W', C): the inverse of `split`."""
        C = windows.shape[-1]
        (h, w), (down, across) = self.shape, self.counts
        if self.grid[1] == 1:
            return windows.reshape(batch, -1, 1, C)
        cut = windows.reshape(batch, down, across, h, w, C).transpose(2, 3)
        return cut.reshape(batch, down * h, across * w, C)

    def crop(self, plane: Tensor) -> Tensor:
        """(B, H', W', C) -> (B, N, C): the inverse of `plane`."""
        if self.pads:
            plane = plane[:, : self.grid[0], : self.grid[1]]
        return plane.reshape(plane.shape[0], -1, plane.shape[-1])

    def real(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B P, T) bool: which tokens of the windows are real. None where all are."""
        if mask is None:
            if not self.pads:
                return None
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        return self.split(self.plane(mask.unsqueeze(-1))).squeeze(-1)


def z_order(size: int) -> list[int]:
    """The row-major numbers of the cells of a size x size square in the order of a Z (Morton) curve."""

    def along_the_curve(cell: int) -> int:
        row, column = divmod(cell, size)
        return sum((column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1 for bit in range(size.bit_length()))

    return sorted(range(size * size), key=along_the_curve)
