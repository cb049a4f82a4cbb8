"""Spatial-reduction attention (PVT, arXiv 2102.12122; PVTv2, arXiv 2106.13797): few keys and values for many queries.

Legend: B batch, N tokens, M keys, C channels, H heads, R reduction, S pool size, P cells of a sample, T tokens of one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible, check_positive
from shared_attn.functional import softmax_attention
from shared_attn.windows import Windows, z_order

__all__ = ["PartialCells", "ReductionForm", "SpatialReductionAttention"]

ReductionForm = Literal["conv", "pool"]
PartialCells = Literal["pad", "drop"]


class SpatialReductionAttention(Attention):
    """Every token attends to a smaller map of keys and values, made from all tokens in one of two forms.

    conv (PVT, eq. 2-3): a convolution of size and stride R, then layer norm; M = N / R^2 keys. With R = 1 this is plain
        attention. (4 + R^2) C^2 weights and (3 + 2 / R^2) N C^2 + 2 N M C multiply-adds.
    pool (PVTv2's linear form): averages over S x S cells that share the grid evenly (adaptive pooling), a 1x1
        convolution, layer norm, GELU; M = S^2 keys. 5 C^2 weights, 2 N C^2 + 3 M C^2 + 2 N M C multiply-adds.

    On an (N,) grid a cell of the convolution is a run of R^2 tokens, which meets the R x R kernel along a Z (Morton)
    curve: a map serialised along that curve gives what the map itself gives, and points in Morton order are read as
    cubes. The pool's cells are S^2 runs of equal length.

    Padding is zero to the convolution, and counts in no average; a cell without real tokens is no key. In a masked
    sequence the pool's cells share the real tokens evenly.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H (1, 2, 5, 8 in PVT's four stages, of 64 channels each).
        reduction: R, of the conv form (8, 4, 2, 1 in PVT's four stages); 2 if None.
        form: "conv" or "pool".
        pool_size: S, of the pool form; 7 if None, as in PVTv2.
        qkv_bias: biases in the query, key and value maps (the published models have them).
        partial: what becomes of cells of the convolution that tokens do not fill. "pad" counts what is there; "drop"
            leaves them out, as published, except where no cell of a sample is full.

    Raises:
        ValueError: for heads that do not divide the channels, an unknown form or partial, or an option of the other
            form.
    """

    name = "spatial_reduction"
    needs_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        reduction: int | None = None,
        form: ReductionForm = "conv",
        pool_size: int | None = None,
        qkv_bias: bool = True,
        partial: PartialCells = "pad",
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        self._check_form(reduction, form, pool_size, partial)
        self.num_heads, self.form, self.partial = num_heads, form, partial
        self.reduction = 2 if reduction is None else reduction
        self.pool_size = 7 if pool_size is None else pool_size
        check_positive(self.name, reduction=self.reduction, pool_size=self.pool_size)
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.output = nn.Linear(dim, dim)
        self.reduces = form == "pool" or self.reduction > 1
        if self.reduces:
            side = self.reduction if form == "conv" else 1
            self.convolution = nn.Conv2d(dim, dim, side, stride=side)
            self.norm = nn.LayerNorm(dim)
        self._initialise()

    def _check_form(self, reduction: int | None, form: str, pool_size: int | None, partial: str) -> None:
        owner = f"attention {self.name!r}"
        for option, value, kinds in (("form", form, ReductionForm), ("partial", partial, PartialCells)):
            if value not in get_args(kinds):
                raise ValueError(f"{owner}: {option} must be one of {', '.join(get_args(kinds))}; got {value!r}")
        given = {"reduction": reduction is not None, "partial": partial != "pad", "pool_size": pool_size is not None}
        for option in ("pool_size",) if form == "conv" else ("reduction", "partial"):
            if given[option]:
                raise ValueError(f"{owner}: {option} has no meaning for form {form!r}; leave it out")

    def _initialise(self) -> None:
        """Weights normal with standard deviation 1 / sqrt(fan-in), biases zero: unit tokens make unit maps."""
        for layer in self.children():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        assert grid is not None, "needs_grid"
        reduced, keys = x, mask
        if self.form == "pool":
            reduced, keys = _pool(x, grid, mask, self.pool_size)
            weight = self.convolution.weight.flatten(1)
            reduced = F.gelu(self.norm(F.linear(reduced, weight, self.convolution.bias)))
        elif self.reduces:
            reduced, keys = self._convolve(x, grid, mask)
            reduced = self.norm(reduced)
        key, value = self.key_value(reduced).chunk(2, dim=-1)  # each (B, M, C)
        attended = softmax_attention(self.query(x), key, value, mask=keys, num_heads=self.num_heads)
        y: Tensor = self.output(attended)
        return y

    def _convolve(self, x: Tensor, grid: tuple[int, ...], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> (B, P, C), and which of these are keys, (B, P)."""
        if self.partial == "drop" and mask is None:
            x, grid = self._whole_cells(x, grid)
        cells = Windows(grid, self.reduction, shrinks=False)
        plane, real = cells.plane(x), cells.real(x, mask)
        if cells.is_sequence:
            weight = self.convolution.weight.flatten(2)[:, :, z_order(self.reduction)]  # (C, C, T)
            runs = cells.each(cells.cut(plane)).flatten(1)  # (B P, T C)
            reduced = F.linear(runs, weight.transpose(1, 2).flatten(1), self.convolution.bias)
            reduced = reduced.reshape(x.shape[0], cells.number, self.dim)
        else:
            reduced = self.convolution(plane.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        if real is None:
            return reduced, None
        each = cells.each(real).reshape(x.shape[0], cells.number, cells.length)
        keys = each.any(dim=2)
        if self.partial == "drop":
            full = each.all(dim=2)
            keys = torch.where(full.any(dim=1, keepdim=True), full, keys)
        return reduced, keys

    def _whole_cells(self, x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """The tokens of full cells, where there is one; known sizes only."""
        side = self.reduction if len(grid) == 2 else self.reduction**2
        if any(isinstance(size, torch.SymInt) or size < side for size in grid):
            return x, grid
        kept = tuple(size - size % side for size in grid)
        plane = x.reshape(x.shape[0], *grid, self.dim)
        plane = plane[:, : kept[0]] if len(grid) == 1 else plane[:, : kept[0], : kept[1]]
        return plane.reshape(x.shape[0], -1, self.dim), kept


def _pool(x: Tensor, grid: tuple[int, ...], mask: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """(B, N, C) -> averages (B, S^2, C) of the real tokens of cells that share the grid, and which have any."""
    if len(grid) == 1:
        if mask is None:
            return F.adaptive_avg_pool1d(x.transpose(1, 2), size * size).transpose(1, 2), None
        member = _equal_runs(mask, size * size)
        return member.to(x.dtype) @ x / member.sum(dim=2, keepdim=True).clamp(min=1).to(x.dtype), None
    average = _pool_plane(x, grid, size)
    if mask is None:
        return average, None
    share = _pool_plane(mask.unsqueeze(-1).to(torch.promote_types(x.dtype, torch.float32)), grid, size)
    real = share > 0  # (B, S^2, 1)
    return (average / share.masked_fill(~real, 1)).to(x.dtype), real.squeeze(-1)


def _pool_plane(x: Tensor, grid: tuple[int, ...], size: int) -> Tensor:
    """(B, N, C) -> averages (B, S^2, C) over cells that share the (H, W) grid."""
    plane = x.reshape(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(plane, size).flatten(2).transpose(1, 2)


def _equal_runs(mask: Tensor, cells: int) -> Tensor:
    """(B, cells, N) bool: whether a token is in a run, as adaptive pooling of the n real tokens alone has them.

    Run i holds the real tokens from floor(i n / cells) up to ceil((i + 1) n / cells).
    """
    number = mask.sum(dim=1).view(-1, 1, 1)
    rank = (mask.cumsum(dim=1) - 1).unsqueeze(1)  # (B, 1, N)
    i = torch.arange(cells, device=mask.device).view(1, -1, 1)
    start, end = i * number // cells, ((i + 1) * number + cells - 1) // cells
    return (rank >= start) & (rank < end) & mask.unsqueeze(1)
