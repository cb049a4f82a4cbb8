"""Attention on feature maps: (B, C, H, W) <-> (B, N, C) and the gated residual of SAGAN.

Legend: B batch, N tokens, C channels, H W grid, N = H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared_attn import Attention, create_attention

__all__ = ["FeatureMapAttention", "GatedAttention", "feature_map_to_tokens", "tokens_to_feature_map"]


class _Gated(nn.Module):
    """x + gate * attention(x) on tokens; the gate is one number, SAGAN's sigma, and starts at 0."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.gate = nn.Parameter(torch.zeros(1))


class GatedAttention(_Gated):
    """x + gate * attention(x) on (B, N, C), with the one call of the variants. The gate starts at 0.

    Args:
        attention: any variant.
    """

    def forward(self, x: Tensor, grid: Sequence[int] | None = None, mask: Tensor | None = None) -> Tensor:
        return self.attention.gated_residual(x, self.gate, grid, mask)


class FeatureMapAttention(_Gated):
    """x + gate * attention(x) on (B, C, H, W), (B, C, H, W) out. The gate starts at 0 (SAGAN, eq. 3).

    The map comes back in its own memory format. Channels_last is the fast one: its tokens need no copy anywhere.

    Args:
        name: the variant, one of `shared_attn.list_attentions()`.
        channels: C.
        options: the variant's.

    Raises:
        ValueError: as `create_attention`; at the call, where the map is not (B, channels, H, W).
    """

    def __init__(self, name: str, channels: int, **options: Any) -> None:
        super().__init__(create_attention(name, channels, **options))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"feature map attention: expected a map (B, {self.channels}, H, W), got {tuple(x.shape)}")
        H, W = x.shape[2:]
        y = self.attention.gated_residual(feature_map_to_tokens(x), self.gate, (H, W))
        return tokens_to_feature_map(y, (H, W))


def feature_map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), row by row. A view of contiguous maps; contiguous itself if x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def tokens_to_feature_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H W, C) -> (B, C, H, W), a view: channels_last where the tokens are contiguous."""
    B, _, C = x.shape
    return x.view(B, *grid, C).permute(0, 3, 1, 2)
