"""Windows of a layout of tokens, whatever its size: padded to whole windows, cut, and put together again.

Legend: B batch, N tokens, C channels, H W grid, P windows of a sample, T tokens of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Windows", "z_order"]


class Windows:
    """How a layout is cut into windows of `size` x `size` tokens, or a sequence into runs of size^2.

    Where windows do not fill the layout it is padded at its end. A size that is only known as a symbol, as in a graph
    for any number of tokens, never shortens a window, and is always padded, by a window more than it may need: a graph
    does not hold for one window and for several alike.

    Args:
        grid: (H, W), or (N,) for a sequence, which is a column with windows one token wide.
        size: tokens along a side of a window.
        shrinks: whether a dimension shorter than a window shortens the window, which saves the padding.
        shift: windows begin that many tokens further down and right, in a sequence `size` times as many further on. The
            layout is rolled: the last windows also hold its beginning, as regions of their own. A grid is not shifted
            along a dimension that one window spans; a sequence always is (and its windows never shrink), so that it
            does not depend on what pads it.
    """

    def __init__(self, grid: tuple[int, ...], size: int, *, shrinks: bool = True, shift: int = 0) -> None:
        self.is_sequence = len(grid) == 1
        self.grid = (grid[0], 1) if self.is_sequence else (grid[0], grid[1])
        side = (size * size, 1) if self.is_sequence else (size, size)
        shrinks = shrinks and not (self.is_sequence and shift)
        (self.down, self.height), (self.across, self.width) = (
            _cut(n, min(n, s) if shrinks and not isinstance(n, torch.SymInt) else s)
            for n, s in zip(self.grid, side, strict=True)
        )
        self.padding = (self.down * self.height - self.grid[0], self.across * self.width - self.grid[1])
        self.pads = any(isinstance(n, torch.SymInt) or n > 0 for n in self.padding)
        self.shift = (shift * size, 0) if self.is_sequence else tuple(shift * _is_longer(n, size) for n in self.grid)
        self.shifts = shift > 0 and any(isinstance(n, torch.SymInt) or n > 0 for n in self.shift)

    @property
    def number(self) -> int:
        """P, the windows of a sample."""
        return self.down * self.across

    @property
    def length(self) -> int:
        """T, the tokens of a window."""
        return self.height * self.width

    def plane(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H', W', C), with zeros at the end where windows do not fill the layout."""
        plane = x.reshape(x.shape[0], *self.grid, x.shape[2])
        return F.pad(plane, (0, 0, 0, self.padding[1], 0, self.padding[0])) if self.pads else plane

    def cut(self, plane: Tensor) -> Tensor:
        """(B, H', W', C) -> (B, P T, C): window after window, row by row. A view of a sequence."""
        B, C = plane.shape[0], plane.shape[-1]
        if not self.is_sequence:
            plane = plane.reshape(B, self.down, self.height, self.across, self.width, C).transpose(2, 3)
        return plane.reshape(B, self.number * self.length, C)

    def arrange(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, P T, C): window after window, the layout's end padded with zeros."""
        plane = self.plane(x)
        if self.shifts:
            plane = plane.roll((-self.shift[0], -self.shift[1]), (1, 2))
        return self.cut(plane)

    def each(self, tokens: Tensor) -> Tensor:
        """(B, P T, C) -> (B P, T, C), a view."""
        if isinstance(tokens.shape[1], torch.SymInt):  # whose divisibility by T a reshape would have to prove
            return tokens.unfold(1, self.length, self.length).transpose(2, 3).flatten(0, 1)
        return tokens.reshape(tokens.shape[0] * self.number, self.length, tokens.shape[2])

    def together(self, windows: Tensor, batch: int) -> Tensor:
        """(B P, T, C) -> (B, P T, C), a view: the inverse of `each`."""
        return windows.reshape(batch, self.number * self.length, windows.shape[2])

    def join(self, tokens: Tensor) -> Tensor:
        """(B, P T, C) -> (B, H', W', C): the inverse of `cut`."""
        B, C = tokens.shape[0], tokens.shape[2]
        if not self.is_sequence:
            tokens = tokens.reshape(B, self.down, self.across, self.height, self.width, C).transpose(2, 3)
        return tokens.reshape(B, self.down * self.height, self.across * self.width, C)

    def crop(self, plane: Tensor) -> Tensor:
        """(B, H', W', C) -> (B, N, C): the inverse of `plane`."""
        H, W = self.grid
        if self.is_sequence and isinstance(H, torch.SymInt):  # a slice would have to know whether it is the whole
            return plane.squeeze(2).index_select(1, torch.arange(H, device=plane.device))
        if self.pads:
            plane = plane[:, :H, :W]
        return plane.reshape(plane.shape[0], H * W, plane.shape[3])

    def restore(self, tokens: Tensor) -> Tensor:
        """(B, P T, C) -> (B, N, C): the inverse of `arrange`."""
        plane = self.join(tokens)
        if self.shifts:
            plane = plane.roll(self.shift, (1, 2))
        return self.crop(plane)

    def real(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B, P T, 1) bool: which of the arranged tokens are real. None where all are."""
        if mask is None:
            if not self.pads:
                return None
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        return self.arrange(mask.unsqueeze(-1))

    def regions(self, device: torch.device) -> Tensor | None:
        """(1, P T, 1): which arranged tokens of a window lie together in the layout. None where all do."""
        if not self.shifts:
            return None
        H, W = self.down * self.height, self.across * self.width
        below = torch.arange(H, device=device) >= H - self.shift[0]
        beside = torch.arange(W, device=device) >= W - self.shift[1]
        return self.cut(2 * below.view(1, H, 1, 1) + beside.view(1, 1, W, 1))


def _cut(tokens: int, side: int) -> tuple[int, int]:
    """How many windows a dimension needs, and their length."""
    return (tokens // side + 2 if isinstance(tokens, torch.SymInt) else -(-tokens // side)), side


def _is_longer(tokens: int, side: int) -> int:
    """1 where a dimension is longer than a window, else 0."""
    return torch.sym_min(1, (tokens - 1) // side) if isinstance(tokens, torch.SymInt) else int(tokens > side)


def z_order(size: int) -> list[int]:
    """The row-major numbers of the cells of a size x size square in the order of a Z (Morton) curve."""

    def along_the_curve(cell: int) -> int:
        row, column = divmod(cell, size)
        return sum((column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1 for bit in range(size.bit_length()))

    return sorted(range(size * size), key=along_the_curve)
