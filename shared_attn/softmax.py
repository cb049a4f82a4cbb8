"""Plain self-attention and the simplified form it has in the external-attention paper.

Legend: B batch, N tokens, M tokens of a context, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, Context, check_divisible
from shared_attn.functional import softmax_attention

__all__ = ["SelfAttention", "SimplifiedSelfAttention"]


class SelfAttention(Attention):
    """Multi-head self-attention, softmax(q k^T / sqrt(d)) v and an output map, by torch's fused kernels.

    4 C^2 parameters (no biases), 4 N C^2 + 2 N^2 C multiply-adds.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: 1 is the non-local block that the external-attention paper compares with.
    """

    name = "self"
    takes_context = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)  # each (B, N, C)
        y: Tensor = self.output(softmax_attention(query, key, value, mask=mask, num_heads=self.num_heads))
        return y

    def cross_attend(
        self, x: Tensor, _grid: tuple[int, ...] | None, _mask: Tensor | None, context: Context, /
    ) -> Tensor:
        weight = self.query_key_value.weight
        query = F.linear(x, weight[: self.dim])
        key, value = F.linear(context.tokens, weight[self.dim :]).chunk(2, dim=-1)  # each (B, M, C)
        y: Tensor = self.output(softmax_attention(query, key, value, mask=context.mask, num_heads=self.num_heads))
        return y


class SimplifiedSelfAttention(Attention):
    """softmax(x x^T) x (arXiv 2105.02358, eq. 3-4): no maps, no scale, no parameters."""

    name = "simplified_self"

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        return softmax_attention(x, x, x, mask=mask, scale=1.0)
