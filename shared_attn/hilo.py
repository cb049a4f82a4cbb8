"""HiLo attention (LITv2, arXiv 2205.13213, section 3.2): some heads see details, the others see everything, coarsely.

Legend: B batch, N tokens, C channels, H heads, D head width, P windows of a sample, T tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible, check_positive
from shared_attn.functional import softmax_attention
from shared_attn.windows import Windows

__all__ = ["HiLoAttention"]


class HiLoAttention(Attention):
    """Hi-Fi heads attend inside windows; Lo-Fi heads attend from every token to the average of every window.

    The output holds the Hi-Fi channels first, then the Lo-Fi ones, each through a map of its own. Windows are
    window_size x window_size on an (H, W) grid and runs of window_size^2 tokens on an (N,) one. Where they do not fill
    the grid the rest is padding (the original fails there, or drops the last row and column): padded or masked tokens
    are no keys, and an average counts real tokens only.

    With h and l channels of either kind, h + l = C: 3 C h + h^2 + C l + 2 C l + l^2 weights, and multiply-adds
    N (3 C h + h^2 + C l + l^2) + P 2 C l + 2 N (T h + P l): quadratic in N, T^2 times less than plain attention.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads of both kinds (the published classifiers have 3 to 32, of 32 channels each).
        window_size: the side of a window (2 in the published classifiers). With 1 all heads are Lo-Fi: plain attention.
        alpha: the share of Lo-Fi heads, of which there are int(num_heads * alpha): 0 is Hi-Fi only, 1 Lo-Fi only (0.9
            in the published classifiers).
        qkv_bias: biases in the query, key and value maps.

    Raises:
        ValueError: for heads that do not divide the channels, and an alpha that is not in [0, 1], or is positive and
            yet too small for one head.
    """

    name = "hilo"
    needs_grid = True

    def __init__(
        self, dim: int, num_heads: int = 8, window_size: int = 2, alpha: float = 0.5, qkv_bias: bool = False
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        check_positive(self.name, window_size=window_size)
        self.window_size, self.alpha = window_size, alpha
        self.low_heads = num_heads if window_size == 1 else _count_low_heads(num_heads, alpha)
        self.high_heads = num_heads - self.low_heads
        low, high = self.low_heads * dim // num_heads, self.high_heads * dim // num_heads
        if self.low_heads:
            self.low_query = nn.Linear(dim, low, bias=qkv_bias)
            self.low_key_value = nn.Linear(dim, 2 * low, bias=qkv_bias)
            self.low_output = nn.Linear(low, low)
        if self.high_heads:
            self.high_query_key_value = nn.Linear(dim, 3 * high, bias=qkv_bias)
            self.high_output = nn.Linear(high, high)
        self._initialise()

    def _initialise(self) -> None:
        """Weights normal with standard deviation 1 / sqrt(fan-in), biases zero: unit tokens make unit maps."""
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        assert grid is not None, "needs_grid"
        windows = Windows(grid, self.window_size)
        # Queries do not mind their order, so that everything happens in that of the windows.
        tokens, real = windows.arrange(x), windows.real(x, mask)  # (B, P T, C), (B, P T, 1)
        parts = []
        if self.high_heads:
            parts.append(self._attend_inside_windows(tokens, windows, real))
        if self.low_heads:
            parts.append(self._attend_to_averages(tokens, windows, real))
        return windows.restore(torch.cat(parts, dim=-1))

    def _attend_inside_windows(self, tokens: Tensor, windows: Windows, real: Tensor | None) -> Tensor:
        query, key, value = windows.each(self.high_query_key_value(tokens)).chunk(3, dim=-1)  # each (B P, T, h)
        keys = None if real is None else windows.each(real).squeeze(-1)
        attended = softmax_attention(query, key, value, mask=keys, num_heads=self.high_heads)
        y: Tensor = self.high_output(windows.together(attended, tokens.shape[0]))
        return y

    def _attend_to_averages(self, tokens: Tensor, windows: Windows, real: Tensor | None) -> Tensor:
        B, P = tokens.shape[0], windows.number
        each = windows.each(tokens)  # (B P, T, C)
        if real is None:
            average, keys = each.mean(dim=1), None
        else:  # padding is zero
            counts = windows.each(real).sum(dim=1)  # (B P, 1)
            average, keys = each.sum(dim=1) / counts.clamp(min=1).to(each.dtype), (counts > 0).reshape(B, P)
        key, value = self.low_key_value(average.reshape(B, P, self.dim)).chunk(2, dim=-1)  # each (B, P, l)
        query = self.low_query(tokens)  # (B, P T, l)
        y: Tensor = self.low_output(softmax_attention(query, key, value, mask=keys, num_heads=self.low_heads))
        return y


def _count_low_heads(num_heads: int, alpha: float) -> int:
    """int(num_heads * alpha), as the original; but never silently none."""
    owner = f"attention {HiLoAttention.name!r}"
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ValueError(f"{owner}: alpha must be a number from 0 (Hi-Fi only) to 1 (Lo-Fi only), got {alpha!r}")
    low_heads = int(num_heads * alpha)
    if alpha > 0 and low_heads == 0:
        raise ValueError(
            f"{owner}: alpha {alpha} leaves none of {num_heads} heads to Lo-Fi; use at least {1 / num_heads:.4g} for "
            "one such head, or 0 for Hi-Fi only"
        )
    return low_heads
