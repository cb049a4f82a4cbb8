"""Tokens as the finest level of a pyramid of cells, numbered so that a level is one reshape of the finer one.

Legend: B batch, N tokens, C channels, H heads, D head width, G cells of a level in a cell of the next, n and m cells,
K chosen cells, R rows of cells of all samples and heads.

A cell of a grid holds 2 x 2 cells of the finer level, a cell of a sequence G consecutive ones. The cells are numbered
along the Z-order (Morton) curve inside each coarsest cell, so that the children of cell i are the cells G i ... G i +
G - 1 in both layouts: pooling is a mean over a reshaped axis, and the children of any cells are rows of a reshaped
tensor. Layouts that do not divide are padded at their ends. Padding, like masked tokens, counts for nothing: a cell is
the mean of the real tokens in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Cells", "add_to_children", "children_of", "families", "gather_children", "pool_levels", "real_tokens"]


@dataclass(frozen=True)
class Cells:
    """How the tokens of a layout become cells, and back.

    grid: (H, W), in cells of 2 x 2, or (N,), in cells of `group`. levels: of the pyramid, the tokens' own included.
    """

    grid: tuple[int, ...]
    levels: int
    group: int

    @property
    def branching(self) -> int:
        """Cells of a level in a cell of the next, along one axis."""
        return 2 if len(self.grid) > 1 else self.group

    @property
    def blocks(self) -> tuple[int, ...]:
        """The layout of the coarsest cells."""
        unit = self.branching ** (self.levels - 1)
        return tuple((side + unit - 1) // unit for side in self.grid)

    @property
    def is_padded(self) -> bool:
        """Whether the coarsest cells hold more than the tokens."""
        return any(side % self.branching ** (self.levels - 1) for side in self.grid)

    def coarser(self) -> Cells:
        """The pyramid without its finest level."""
        sides = tuple((side + self.branching - 1) // self.branching for side in self.grid)
        return Cells(sides, self.levels - 1, self.group)

    def order(self, x: Tensor, num_heads: int = 1) -> Tensor:
        """Tokens (B, N, H D) as cells in Z-order, (B, H, n, D); padding is zero."""
        x = x.reshape(x.shape[0], *self.grid, num_heads, -1)
        if self.is_padded:
            unit = self.branching ** (self.levels - 1)
            ends = [block * unit - side for block, side in zip(self.blocks, self.grid, strict=True)]
            x = F.pad(x, (0, 0, 0, 0, *(size for end in reversed(ends) for size in (0, end))))
        if len(self.grid) == 1:
            return x.transpose(1, 2)
        steps = self.levels - 1
        x = x.reshape(x.shape[0], *(size for block in self.blocks for size in (block, *[2] * steps)), *x.shape[-2:])
        rows, columns = range(1, 2 + steps), range(2 + steps, 3 + 2 * steps)
        interleaved = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
        x = x.permute(0, x.dim() - 2, *interleaved, x.dim() - 1)  # (B, H, block row, block column, 2, 2, ..., D)
        return x.flatten(2, -2)

    def restore(self, x: Tensor) -> Tensor:
        """Cells (B, H, n, D) as tokens (B, N, H D), without padding."""
        H, D = x.shape[1], x.shape[3]
        if len(self.grid) == 1:
            x = x.transpose(1, 2)
        else:
            steps = self.levels - 1
            x = x.reshape(x.shape[0], H, *self.blocks, *[2] * (2 * steps), D)
            rows, columns = range(2, x.dim() - 1, 2), range(3, x.dim() - 1, 2)
            x = x.permute(0, *rows, *columns, 1, x.dim() - 1)
            sides = [block * 2**steps for block in self.blocks]
            x = x.reshape(x.shape[0], *sides, H, D)
        if self.is_padded:
            for axis, side in enumerate(self.grid):
                x = x.narrow(1 + axis, 0, side)
        return x.reshape(x.shape[0], -1, H * D)


def real_tokens(cells: Cells, mask: Tensor | None, like: Tensor) -> list[Tensor] | None:
    """How many real tokens each cell of each level holds, (B or 1, 1, n, 1) from fine to coarse.

    None where every token is real and there is no padding. The counts are in the dtype of `like`, at least float32.
    """
    if mask is None and not cells.is_padded:
        return None
    dtype = torch.promote_types(like.dtype, torch.float32)
    real = like.new_ones(1, like.shape[1], 1, dtype=dtype) if mask is None else mask.unsqueeze(-1).to(dtype)
    counts = [cells.order(real)]
    while len(counts) < cells.levels:
        counts.append(families(counts[-1], cells.group).sum(dim=3))
    return counts


def pool_levels(x: Tensor, counts: list[Tensor] | None, levels: int, group: int) -> list[Tensor]:
    """Means of the real tokens in the cells of every level, (B, H, n, D) from fine to coarse."""
    pyramid = [x]
    for level in range(1, levels):
        if counts is None:
            x = families(x, group).mean(dim=3)
        else:
            total = families(x * counts[level - 1].to(x.dtype), group).sum(dim=3)
            x = total / counts[level].clamp(min=1).to(x.dtype)
        pyramid.append(x)
    return pyramid


def families(x: Tensor, group: int) -> Tensor:
    """(..., G n, D) -> (..., n, G, D)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // group, group, x.shape[-1])


def children_of(chosen: Tensor, group: int) -> Tensor:
    """The numbers of the children of chosen cells: (..., K) -> (..., K G)."""
    return (chosen.unsqueeze(-1) * group + torch.arange(group, device=chosen.device)).flatten(-2)


def gather_children(x: Tensor, chosen: Tensor, group: int) -> Tensor:
    """What the children of chosen cells hold: x (G m, D), chosen (R, K) of m -> (R, K G, D)."""
    D = x.shape[-1]
    return x.reshape(-1, group * D).index_select(0, chosen.flatten()).reshape(chosen.shape[0], -1, D)


def add_to_children(coarse: Tensor, fine: Tensor, group: int) -> Tensor:
    """A coarse level's (..., n, D) in each of its children, added to theirs, (..., G n, D)."""
    return (families(fine, group) + coarse.unsqueeze(-2)).flatten(-3, -2)
