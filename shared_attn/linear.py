"""Linear attention: a product of feature maps instead of the softmax of a product, so that sums over tokens factor out.

Legend: B batch, N tokens, M tokens attended to (N, or a context's), C channels, H heads, D head width.

    y_n = W_o concat_h( phi(q_n)^T sum_m psi(k_m) v_m^T / normaliser )

The sum over m is one D x D matrix a head, made once. Nor is there anything nonlinear between the values and the output
map, so that sum_m psi(k_m) v_m^T W_o^T = (psi(K)^T X) W_v^T W_o^T: where there are many tokens neither values nor their
mixtures are made, and the two products with the tokens are C x C ones that run at a matrix product's full speed.

Initialisation: all weights normal with standard deviation 1 / sqrt(fan in), no biases.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, Context, check_divisible
from shared_attn.folding import Fold, check_fold, folds
from shared_attn.functional import full_precision

__all__ = ["LinearAttention", "LinearKernel"]

LinearKernel = Literal["elu", "softmax"]


class LinearAttention(Attention):
    """Attention with a kernel in place of the exponential of the dot product, linear in N.

    4 C^2 parameters; 2 (N + M) C (C + D) multiply-adds, or 2 (N + M) C^2 + 2 C^2 D with value and output maps folded:
    the same function, gradients included. Features and their sums are in at least float32.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H (Katharopoulos et al. have 8).
        kernel: "elu": phi = psi = elu + 1, divided by phi(q)^T sum_m psi(k_m) (Katharopoulos et al., arXiv 2006.16236).
            "softmax": phi a softmax over the channels of a head, psi a softmax over the tokens, which together need no
            divisor ("Efficient attention", Shen et al., arXiv 1812.01243).
        fold: whether the value and output maps are multiplied into the sums. "auto" takes the fewer multiply-adds:
            where there are more tokens than channels.
        eps: added to the divisor of kernel "elu".

    Raises:
        ValueError: for an unknown kernel or fold, heads that do not divide the channels, or an eps that is not
            positive.
    """

    name = "linear"
    takes_context = True

    def __init__(
        self, dim: int, num_heads: int = 8, kernel: LinearKernel = "elu", fold: Fold = "auto", eps: float = 1e-6
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        check_fold(self.name, fold)
        if kernel not in get_args(LinearKernel):
            raise ValueError(f"attention {self.name!r}: kernel must be elu or softmax; got {kernel!r}")
        if not eps > 0:
            raise ValueError(f"attention {self.name!r}: eps must be positive, got {eps!r}")
        self.num_heads, self.kernel, self.fold, self.eps = num_heads, kernel, fold, eps
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.normal_(layer.weight, std=dim**-0.5)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        return self._attend(x, x, mask)

    def cross_attend(
        self, x: Tensor, _grid: tuple[int, ...] | None, _mask: Tensor | None, context: Context, /
    ) -> Tensor:
        return self._attend(x, context.tokens, context.mask)

    def folds(self, queries: int, tokens: int) -> bool:
        """Whether value and output maps are folded for this many queries and tokens attended to."""
        C, D = self.dim, self.dim // self.num_heads
        return folds(self.fold, 2 * C * C * D, C * D * (queries + tokens))

    def _attend(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        query, key = self.query(x), self.key(tokens)
        dtype = query.dtype
        precise = torch.promote_types(dtype, torch.float32)
        # Sums over the tokens may overflow half precision, so "elu" has means, and divisors a number of tokens smaller.
        scale = 1 / tokens.shape[1] if self.kernel == "elu" else 1.0
        with full_precision(x):
            query, key = self._features(query.to(precise), key.to(precise), mask, scale)  # (B, N, C), (B, M, C)
            query = query.to(dtype)
        if self.folds(x.shape[1], tokens.shape[1]):
            with full_precision(x):
                moments = (key.mT @ tokens.to(precise)) * scale  # (B, C, C)
                return query @ self._rows(moments).to(dtype)
        value = self.value(tokens)
        with full_precision(x):
            sums = self._split(key).mT @ self._split(value.to(precise)) * scale  # (B, H, D, D)
        mixed = self._split(query) @ sums.to(dtype)  # (B, H, N, D)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return y

    def _rows(self, moments: Tensor) -> Tensor:
        """blockdiag_h(sum_m psi(k_m) v_m^T) W_o^T, (B, C, C), from psi(K)^T X."""
        C, H = self.dim, self.num_heads
        value = self.value.weight.to(moments.dtype).reshape(H, -1, C)
        output = self.output.weight.to(moments.dtype).mT.reshape(H, -1, C)
        sums = moments.reshape(-1, H, C // H, C) @ value.mT  # (B, H, D, D)
        return (sums @ output).flatten(1, 2)

    def _features(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """phi(q), divided by the normaliser times `scale`, (B, N, C), and psi(k), (B, M, C), zero for padding."""
        if self.kernel == "softmax":
            if mask is not None:
                attendable = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over no token would be NaN
                key = key.masked_fill(~attendable.unsqueeze(-1), float("-inf"))
            return self._heads(query).softmax(dim=-1).flatten(2), key.softmax(dim=1)
        query, key = _elu_plus_one(query), _elu_plus_one(key)
        if mask is not None:
            key = key.masked_fill(~mask.unsqueeze(-1), 0)
        heads = self._heads(query)  # (B, N, H, D)
        mass = self._heads(key.sum(dim=1, keepdim=True) * scale)  # (B, 1, H, D)
        divisor = (heads * mass).sum(dim=-1, keepdim=True) + self.eps * scale
        return (heads / divisor).flatten(2), key

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, -1)  # (B, N, H, D)

    def _split(self, x: Tensor) -> Tensor:
        return self._heads(x).transpose(1, 2)  # (B, H, N, D)


def _elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1 without the rounding to 0 that far below zero subtracting and adding 1 would bring."""
    return F.relu(x) + x.clamp(max=0).exp()
