"""What stands beside cross-covariance attention in XCiT (arXiv 2106.09681): convolutions on the grid, a class token.

Legend: B batch, N tokens, C channels, H heads, D head width.

Cross-covariance attention mixes channels and never compares two tokens: `LocalPatchInteraction` is how tokens of one
neighbourhood meet. The last layers attend with the class token alone (CaiT, arXiv 2103.17239, section 3).

With one query the key and value maps fold away exactly: q^T (W_k x_n) = (W_k^T q)^T x_n, and because the weights a_n
sum to one, sum_n a_n (W_v x_n + b_v) = W_v (sum_n a_n x_n) + b_v. A bias of the keys adds the same to every logit and
cancels. So class attention takes 2 N C H multiply-adds beside maps of single vectors, not 2 N C^2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible, check_positive
from shared_attn.functional import full_precision
from shared_attn.token_norm import normalise_tokens

__all__ = ["ClassAttention", "ClassAttentionBlock", "LocalPatchInteraction"]


class LocalPatchInteraction(Attention):
    """Depthwise convolution, GELU, batch norm, depthwise convolution, in the order of the released code and timm.

    Both convolutions are padded with zeros. Masked tokens count as such zeros in both, so that a padded sequence is the
    sequence alone; a sequence (N,) is a grid (N, 1). Needs a grid.

    Args:
        dim: channels C.
        kernel_size: odd (the paper: 3).

    Raises:
        ValueError: for a kernel_size that is not a positive odd integer.
    """

    name = "local patch interaction"
    needs_grid = True

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__(dim)
        check_positive(self.name, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"{self.name}: kernel_size must be odd, got {kernel_size}")
        self.first = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.BatchNorm1d(dim)
        self.second = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=1 / kernel_size)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        assert grid is not None, "needs_grid"
        hidden = normalise_tokens(self.norm, F.gelu(_convolve(self.first, x, grid)), mask)
        return _convolve(self.second, hidden, grid)


class ClassAttention(nn.Module):
    """The class token attends to itself and all patches: (B, N, C), the class token first, to (B, 1, C).

    4 C^2 parameters without query, key and value biases, plus C of the output's.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H.
        qkv_bias: biases in the query, key and value maps (XCiT has them). The key's cancels in the softmax.

    Raises:
        ValueError: for heads that do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False) -> None:
        super().__init__()
        check_positive("class attention", dim=dim)
        check_divisible("class attention", dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = nn.Linear(dim, dim, bias=qkv_bias)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.output = nn.Linear(dim, dim)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.normal_(layer.weight, std=dim**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, C); mask: (B, N) bool, True = real; the class token is always attended to."""
        B, N, C = x.shape
        H, D = self.num_heads, C // self.num_heads
        query = self.query(x[:, 0]).reshape(B, H, 1, D)
        dtype = query.dtype
        with full_precision(x):
            precise = torch.promote_types(dtype, torch.float32)
            tokens = x.to(precise)
            if mask is not None:
                attended = mask | (torch.arange(N, device=mask.device) == 0)
                tokens = tokens.masked_fill(~attended.unsqueeze(2), 0)
            reach = (query.to(precise) @ self.key.weight.to(precise).reshape(H, D, C)).squeeze(2)  # (B, H, C)
            logits = (reach @ tokens.mT) * D**-0.5  # (B, H, N)
            if mask is not None:
                logits = logits.masked_fill(~attended.unsqueeze(1), float("-inf"))
            means = (logits.softmax(dim=-1) @ tokens).unsqueeze(2)  # (B, H, 1, C)
            mixed = (means @ self.value.weight.to(precise).reshape(H, D, C).mT).reshape(B, 1, C)
            if self.value.bias is not None:
                mixed = mixed + self.value.bias
        y: Tensor = self.output(mixed.to(dtype))
        return y


class ClassAttentionBlock(nn.Module):
    """XCiT's last layers: class attention, then a feed-forward network on the class token, both with layer scale.

    As in the released models, the first residual adds the *normalised* patch tokens, scaled, to the patch tokens, which
    CaiT leaves alone; and with `tokens_norm` the second norm replaces all tokens, not the class token alone.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H.
        mlp_ratio: hidden width of the feed-forward network over C.
        qkv_bias: as ClassAttention.
        layer_scale: initial value of both scales (timm's eta), or None for none.
        tokens_norm: whether the second norm applies to the patch tokens too (XCiT's larger models).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        layer_scale: float | None = 1.0,
        tokens_norm: bool = False,
    ) -> None:
        super().__init__()
        self.tokens_norm = tokens_norm
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = ClassAttention(dim, num_heads, qkv_bias)
        self.network_norm = nn.LayerNorm(dim)
        self.network = nn.Sequential(
            nn.Linear(dim, int(dim * mlp_ratio)), nn.GELU(), nn.Linear(int(dim * mlp_ratio), dim)
        )
        self.attention_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.network_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, N, C), the class token first; mask: (B, N) bool, True = real. Returns (B, N, C), padding zero."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(2), 0)
        normed = self.attention_norm(x)
        attended = torch.cat([self.attention(normed, mask), normed[:, 1:]], dim=1)
        x = x + _scale(attended, self.attention_scale)
        if self.tokens_norm:
            x = self.network_norm(x)
            token, patches = x[:, :1], x[:, 1:]
        else:
            token, patches = self.network_norm(x[:, :1]), x[:, 1:]
        token = token + _scale(self.network(token), self.network_scale)
        # In timm the patch tokens pass this residual too, as their own addition: they are doubled.
        y = torch.cat([token, 2 * patches], dim=1)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(2), 0)


def _scale(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x


def _convolve(layer: nn.Conv2d, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A convolution of tokens (B, N, C) on their grid."""
    H, W = grid if len(grid) == 2 else (grid[0], 1)
    image = x.reshape(x.shape[0], H, W, -1).permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory
    y: Tensor = layer(image).permute(0, 2, 3, 1).flatten(1, 2)
    return y
