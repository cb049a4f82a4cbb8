"""The learnt layers of QuadTree attention of type B: values of the coarser levels, and positions.

Legend: B batch, N tokens, C channels, G cells of a level in a cell of the next, n cells.

Initialisation, for tokens of unit variance (all weights normal, all biases zero):

    value branch             sqrt(2.35 / fan in)    E[gelu(z)^2] = 1 / 2.35 for a normal z
    positional encoding      1 / 3                  fan in 9
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.functional import full_precision

__all__ = ["CHILDREN_ON_A_GRID", "PositionalEncoding", "ValueBranch", "initialise", "without_padding"]

CHILDREN_ON_A_GRID = 4


class PositionalEncoding(nn.Conv2d):
    """A depthwise 3 x 3 convolution on tokens (B, N, C); on a sequence its nine weights are the taps -4 ... 4."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        initialise(self)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        if len(grid) == 1:
            taps = self.weight.reshape(-1, 1, 1, 9)
            y = F.conv2d(x.mT.unsqueeze(2), taps, self.bias, padding=(0, 4), groups=x.shape[2])
        else:
            y = super().forward(x.reshape(x.shape[0], *grid, -1).permute(0, 3, 1, 2))
        return y.flatten(2).mT


class ValueBranch(nn.Module):
    """From the values of a level to those of the next: norm, GELU, a map of a cell's G children, norm, GELU, a map.

    The norms are over all real cells and channels of a sample (one group).
    """

    def __init__(self, dim: int, group: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.merge = nn.Conv2d(dim, dim, (2, 2) if group == CHILDREN_ON_A_GRID else (1, group))
        self.merged_norm = nn.GroupNorm(1, dim)
        self.map = nn.Linear(dim, dim)
        self.group = group
        for layer in (self.merge, self.map):
            initialise(layer, gain=2.35**0.5)

    def forward(self, x: Tensor, fine: Tensor | None, coarse: Tensor | None) -> Tensor:
        """(B, n, C) -> (B, n / G, C). fine, coarse: real tokens in the cells of either level, (B or 1, n, 1)."""
        x = without_padding(F.gelu(_normalise(self.norm, x, fine)), fine)
        x = x.reshape(x.shape[0], x.shape[1] // self.group, -1)  # (B, n / G, G C)
        x = F.linear(x, self.merge.weight.flatten(2).transpose(1, 2).flatten(1), self.merge.bias)
        x = self.map(F.gelu(_normalise(self.merged_norm, x, coarse)))
        return without_padding(x, coarse)


def _normalise(norm: nn.GroupNorm, x: Tensor, count: Tensor | None) -> Tensor:
    """Group norm with one group on (B, n, C), over the cells with real tokens, in at least float32."""
    with full_precision(x):
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if count is None:
            # Not torch.var_mean, which takes five times as long on a CPU, and which ONNX export from torch 2.6 lacks.
            mean = precise.mean(dim=(1, 2), keepdim=True)
            variance = (precise - mean).square().mean(dim=(1, 2), keepdim=True)
        else:
            real = (count > 0).to(precise.dtype)
            number = x.shape[2] * real.sum(dim=1, keepdim=True).clamp(min=1)
            mean = (precise * real).sum(dim=(1, 2), keepdim=True) / number
            variance = ((precise - mean) * real).square().sum(dim=(1, 2), keepdim=True) / number
        scale = norm.weight * (variance + norm.eps).rsqrt()  # (B, 1, C)
        return torch.addcmul(norm.bias - mean * scale, precise, scale).to(x.dtype)


def without_padding(x: Tensor, count: Tensor | None) -> Tensor:
    """Zero where a cell holds no real token."""
    return x if count is None else x.masked_fill(count == 0, 0)


def initialise(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights normal with a standard deviation of gain / sqrt(fan in), biases zero."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
