"""SAGAN's self-attention (arXiv 1805.08318, section 3, and PyTorch-StudioGAN's sizes).

Legend: B batch, N tokens, M pooled tokens, C channels, H W grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention
from shared_attn.functional import softmax_attention

__all__ = ["SaganAttention"]


class SaganAttention(Attention):
    """softmax(theta phi^T) g and an output map, keys phi and values g max-pooled by 2; no scale, no biases.

    Theta and phi are C -> C // 8, g is C -> C // 2: with the gate (sigma), which like the residual belongs to
    FeatureMapAttention, 1.25 C^2 + 1 parameters. Pooling takes 2 x 2 cells of an (H, W) grid and runs of 2 along an
    (N,) one; as in max_pool2d an odd last row or column is in no cell, but a dimension of size 1 is kept as it is. A
    cell takes the maximum of its real tokens.

    Args:
        dim: channels C, at least 8.
    """

    name = "sagan"
    needs_grid = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        if dim < 8:
            raise ValueError(f"attention {self.name!r}: dim must be at least 8 (queries have dim // 8), got {dim}")
        self.theta = nn.Linear(dim, dim // 8, bias=False)
        self.phi = nn.Linear(dim, dim // 8, bias=False)
        self.g = nn.Linear(dim, dim // 2, bias=False)
        self.output = nn.Linear(dim // 2, dim, bias=False)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        assert grid is not None, "needs_grid"
        x = x.contiguous()  # of a channels-first map each of the three linear maps would make its own copy
        key, value = self.phi(x), self.g(x)
        if mask is not None:
            padding = ~mask.unsqueeze(-1)
            key = key.masked_fill(padding, float("-inf"))
            value = value.masked_fill(padding, float("-inf"))
            mask = _max_pool(mask.unsqueeze(-1).to(x.dtype), grid).squeeze(-1) > 0  # (B, M)
        key, value = _max_pool(key, grid), _max_pool(value, grid)  # (B, M, C // 8), (B, M, C // 2)
        if mask is not None:
            empty = ~mask.unsqueeze(-1)
            key, value = key.masked_fill(empty, 0), value.masked_fill(empty, 0)
        y: Tensor = self.output(softmax_attention(self.theta(x), key, value, mask=mask, scale=1.0))
        return y


def _max_pool(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, N, C) -> (B, M, C): the maxima of cells of 2 along every dimension of the grid longer than 1."""
    H, W = grid if len(grid) == 2 else (grid[0], 1)
    image = tokens.reshape(tokens.shape[0], H, W, -1).permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
    pooled = F.max_pool2d(image, (min(2, H), min(2, W)))
    return pooled.flatten(2).transpose(1, 2)
