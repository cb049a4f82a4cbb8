"""Cross-covariance attention (XCiT, arXiv 2106.09681): channels attend to channels, at a cost linear in the tokens.

Legend: B batch, N tokens, C channels, H heads, D head width, K = C, or C + 1 with biases.

With queries, keys and values of one head as D x N matrices q, k, v, and rows scaled to unit length along N,

    A = softmax_D(temperature * q k^T / (|q| |k|)),    y = W_o concat_h(A v).

The tokens enter A through their second moment alone. With G = X^T X (C x C), q k^T = W_q G W_k^T, and the squared norms
are the diagonals of W_q G W_q^T and W_k G W_k^T. Nor is there anything nonlinear between the values and the output: it
is X P with one C x C matrix a sample, P = (W_o blockdiag(A) W_v)^T. That is the Gram form: two products with the tokens
instead of four and a fraction. A bias is one more column of W, for a channel of X that is 1 at every real token.

Initialisation, for tokens of unit variance (all weights normal, all biases zero, temperatures 1):

    query, key, value    1 / sqrt(C)
    output               sqrt(D / C)    unit outputs: A starts near uniform, so that A v has variance 1 / D
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible
from shared_attn.folding import costs_less
from shared_attn.functional import autocast_enabled, full_precision

__all__ = ["CovarianceForm", "CrossCovarianceAttention"]

CovarianceForm = Literal["auto", "gram", "direct"]
_SMALLEST_SQUARED_NORM = 1e-24  # F.normalize divides by max(norm, 1e-12)


class CrossCovarianceAttention(Attention):
    """XCA: softmax over the channels of a head of the temperature-scaled cosines between its queries and keys.

    4 C^2 + C + H parameters (the output map has a bias, as published). (4 + 2 / H) N C^2 multiply-adds directly,
    2 N C^2 + (3 + 2 / H) C^3 by the Gram matrix: the same function, gradients included. The moment and the attention
    are made in at least float32.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H (the paper has 8 in its small model, of 48 channels each).
        qkv_bias: biases in the query, key and value maps (the published models have them).
        form: "gram", "direct", or "auto": whichever takes fewer multiply-adds, which is the Gram form where N is larger
            than about 1.4 C.

    Raises:
        ValueError: for an unknown form, or heads that do not divide the channels.
    """

    name = "cross_covariance"

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, form: CovarianceForm = "auto") -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        if form not in get_args(CovarianceForm):
            raise ValueError(f"attention {self.name!r}: form must be one of auto, gram, direct; got {form!r}")
        self.num_heads, self.form = num_heads, form
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.output = nn.Linear(dim, dim)
        nn.init.normal_(self.query_key_value.weight, std=dim**-0.5)
        nn.init.normal_(self.output.weight, std=num_heads**-0.5)
        for bias in (self.query_key_value.bias, self.output.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        return self._by_gram_matrix(x, mask) if self.uses_gram_matrix(x.shape[1]) else self._directly(x, mask)

    def uses_gram_matrix(self, tokens: int) -> bool:
        """Whether samples of this many tokens take the Gram form."""
        if self.form == "auto":
            C, H = self.dim, self.num_heads
            return costs_less((2 * tokens + 3 * C) * C * C * H + 2 * C**3, (4 * H + 2) * tokens * C * C)
        return self.form == "gram"

    def _directly(self, x: Tensor, mask: Tensor | None) -> Tensor:
        projected = self.query_key_value(x)
        if mask is not None and self.query_key_value.bias is not None:
            projected = projected.masked_fill(~mask.unsqueeze(-1), 0)  # zero tokens are not zero after a bias
        parts = projected.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, N, D)
        with full_precision(x):
            query, key = parts[:2].to(torch.promote_types(x.dtype, torch.float32)).unbind(0)
            products = query.mT @ key  # (B, H, D, D)
            attention = self._normalise(products, query.square().sum(dim=2), key.square().sum(dim=2))
        mixed = parts[2] @ attention.to(projected.dtype).mT  # (B, H, N, D)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return y

    def _by_gram_matrix(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x.to(_product_dtype(x))
        with full_precision(x):
            x, gram = _TokensAndGram.apply(x)
            P, shift = self._token_map(gram, *(self._bias_moments(x, mask, gram.dtype)))
            y = torch.bmm(x, P.to(x.dtype))
            return y.add_(shift.to(y.dtype))  # in place: at large N a fresh tensor costs more than the sum

    def _bias_moments(self, x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor] | tuple[()]:
        """What a channel of ones adds to the Gram matrix: (B, C) sums of the tokens, (B, 1) numbers of real tokens."""
        if self.query_key_value.bias is None:
            return ()
        number = x.new_full((x.shape[0], 1), x.shape[1], dtype=dtype) if mask is None else mask.sum(1, True).to(dtype)
        return x.sum(dim=1, dtype=dtype), number

    def _token_map(
        self, gram: Tensor, total: Tensor | None = None, number: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The whole attention as one affine map a sample, x P + shift: (B, C, C) and (B, 1, C)."""
        C, H = self.dim, self.num_heads
        weight = self.query_key_value.weight.to(gram.dtype)
        if total is not None and number is not None:
            weight = torch.cat([weight, self.query_key_value.bias.to(gram.dtype).unsqueeze(1)], dim=1)  # (3 C, K)
            border = torch.cat([total, number], dim=1).unsqueeze(2)  # (B, K, 1)
            gram = torch.cat([torch.cat([gram, total.unsqueeze(1)], dim=1), border], dim=2)  # (B, K, K)
        D, K = C // H, gram.shape[1]
        query, value = weight[:C].reshape(H, D, K), weight[2 * C :].reshape(H, D, K)
        moments = F.linear(gram, weight[: 2 * C])  # (B, K, 2 C), the Gram matrix is symmetric
        squares = (moments * weight[: 2 * C].mT).sum(dim=1).reshape(-1, 2, H, D)
        key_moments = moments[:, :, C:].reshape(-1, K, H, D).transpose(1, 2)  # (B, H, K, D)
        attention = self._normalise(query @ key_moments, squares[:, 0], squares[:, 1])  # (B, H, D, D)
        mixed = (attention @ value).flatten(1, 2)  # (B, C, K)
        P = F.linear(mixed.mT, self.output.weight.to(gram.dtype))  # (B, K, C)
        shift = self.output.bias.to(gram.dtype).expand(gram.shape[0], 1, -1)
        return (P, shift) if total is None else (P[:, :C], P[:, C:] + shift)

    def _normalise(self, products: Tensor, query_squares: Tensor, key_squares: Tensor) -> Tensor:
        """softmax of the temperature-scaled cosines, (B, H, D, D), from q k^T and the squared norms (B, H, D)."""
        query_scale = query_squares.clamp(min=_SMALLEST_SQUARED_NORM).rsqrt() * self.temperature.squeeze(-1)
        key_scale = key_squares.clamp(min=_SMALLEST_SQUARED_NORM).rsqrt()
        return (products * query_scale.unsqueeze(3) * key_scale.unsqueeze(2)).softmax(dim=-1)


class _TokensAndGram(torch.autograd.Function):
    """The tokens and their Gram matrix X^T X, (B, C, C), in at least float32.

    Both gradients of the tokens meet in one product, dX + X (dG + dG^T): automatic differentiation would make two
    products for the Gram matrix, and then add three large tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.view_as(x), precise.mT @ precise

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_gram: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.baddbmm(grad_x, x, (grad_gram + grad_gram.mT).to(x.dtype))


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear map of x would answer in here."""
    kind = x.device.type
    lowered = autocast_enabled(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if lowered else x.dtype
