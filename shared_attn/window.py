"""Window attention with a relative position bias and shifted windows (Swin, arXiv 2103.14030).

Legend: B batch, N tokens, C channels, H heads, D head width, s window size, P windows of a sample, T tokens of one.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible, check_positive
from shared_attn.windows import Windows, z_order

__all__ = ["WindowAttention"]


class WindowAttention(Attention):
    """Attention inside s x s windows, softmax(q k^T / sqrt(D) + bias) v, and an output map (eq. 4).

    The bias is learnt for each head and each of the (2 s - 1)^2 offsets between two tokens of a window. With a shift
    the windows begin that many tokens further down and right, and the parts cut off at the border are windows of their
    own (section 3.2: computed by a cyclic shift and a mask).

    A window is no larger than the grid, and along a dimension that it spans nothing is shifted (as published). Windows
    that stick out are filled with padding, which is no key (the original attends to it).

    On an (N,) grid a window is a run of s^2 tokens, which are taken to lie in the s x s window along a Z (Morton)
    curve: offsets, and so the weights, mean the same in both layouts, and a map serialised along that curve gives what
    the map itself gives if s and its sides are powers of two. A shift is s times as many tokens, the same share of a
    window, however long the sequence.

    4 C^2 + (2 s - 1)^2 H + C weights and 3 C biases; 4 N C^2 + 2 N s^2 C multiply-adds: linear in N.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H (3, 6, 12, 24 in Swin-T's four stages, of 32 channels each).
        window_size: s (7 in the paper for images of 224 pixels, 8 for 256).
        shift: tokens, or "half" of a window; blocks alternate between 0 and half.
        qkv_bias: biases in the query, key and value maps.

    Raises:
        ValueError: for heads that do not divide the channels, and a shift that is not in [0, window_size).
    """

    name = "window"
    needs_grid = True
    relative_index: Tensor
    relative_index_of_run: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window_size: int = 8,
        shift: int | Literal["half"] = 0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        check_positive(self.name, window_size=window_size)
        self.num_heads, self.window_size = num_heads, window_size
        self.shift = self._check_shift(shift)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.output = nn.Linear(dim, dim)
        self.relative_bias = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        index = _relative_index(window_size)
        order = torch.tensor(z_order(window_size), device=index.device)
        self.register_buffer("relative_index", index, persistent=False)
        self.register_buffer("relative_index_of_run", index[order][:, order], persistent=False)
        self._initialise()

    def _check_shift(self, shift: object) -> int:
        if shift == "half":
            return self.window_size // 2
        if not isinstance(shift, int) or isinstance(shift, bool) or not 0 <= shift < self.window_size:
            raise ValueError(
                f"attention {self.name!r}: shift must be 'half' or an integer from 0 to {self.window_size - 1}, got "
                f"{shift!r}"
            )
        return shift

    def _initialise(self) -> None:
        """Weights normal with standard deviation 1 / sqrt(fan-in), biases zero; the table as published."""
        for layer in (self.query_key_value, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        assert grid is not None, "needs_grid"
        windows = Windows(grid, self.window_size, shift=self.shift)
        query, key, value = windows.each(self.query_key_value(windows.arrange(x))).chunk(3, dim=-1)  # each (B P, T, C)
        shape = (*query.shape[:2], self.num_heads, self.dim // self.num_heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))  # (B P, H, T, D)
        bias = self._masked_bias(windows, x, mask).to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)  # (B P, T, C)
        return windows.restore(self.output(windows.together(attended, x.shape[0])))

    def _masked_bias(self, windows: Windows, x: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the logits: (1, H, T, T), or (B P, H, T, T) where not all tokens of a window may meet."""
        bias = self._bias(windows)
        allowed = self._allowed(windows, x, mask)
        if allowed is None:
            return bias
        masked = torch.where(allowed.unsqueeze(1), bias, float("-inf"))  # (P or B P, H, T, T)
        if mask is None:
            masked = masked.expand(x.shape[0], *masked.shape).flatten(0, 1)
        return masked

    def _bias(self, windows: Windows) -> Tensor:
        """The table read for every pair of tokens of a window, (1, H, T, T)."""
        T, s = windows.length, self.window_size
        if windows.is_sequence:
            index = self.relative_index_of_run[:T, :T]
        else:
            h, w = windows.height, windows.width
            index = self.relative_index.view(s, s, s, s)[:h, :w, :h, :w]
        return self.relative_bias.index_select(0, index.reshape(-1)).view(1, T, T, -1).permute(0, 3, 1, 2)

    def _allowed(self, windows: Windows, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which tokens of a window may meet, (P, T, T), or with a mask (B P, T, T). None where all may.

        They must lie together in the layout, and a real token meets real ones only. Padding meets all, so that nothing
        is divided by zero.
        """
        allowed = None
        regions, real = windows.regions(x.device), windows.real(x[:1] if mask is None else x, mask)
        if regions is not None:
            region = windows.each(regions)  # (P, T, 1)
            allowed = region == region.mT
        if real is not None:
            each = windows.each(real)  # (P or B P, T, 1)
            meets = each.mT | ~each
            if allowed is None:
                return meets
            allowed = meets & (allowed if mask is None else allowed.repeat(x.shape[0], 1, 1))
        return allowed


def _relative_index(size: int) -> Tensor:
    """(s^2, s^2): the row of the table for a query (rows) and a key (columns) of a window, row by row, as published."""
    row, column = torch.arange(size * size) // size, torch.arange(size * size) % size
    down, across = row.unsqueeze(1) - row + size - 1, column.unsqueeze(1) - column + size - 1
    return down * (2 * size - 1) + across
