"""External attention (arXiv 2105.02358): learnt memories instead of keys and values made from the tokens.

Legend: B batch, N tokens, C channels, S memory slots, H heads, D head width.

The maps around the memories are linear with nothing between, so they fold into them: with W_q the query map and W_o
the output map, (x W_q^T) M_k^T = x (M_k W_q)^T and (a M_v^T) W_o^T = a (W_o M_v)^T. The query map's bias adds the same
constant to a slot's logits at every token, which the softmax over the tokens cancels.

Initialisation, for tokens of unit variance (all weights normal, all biases zero):

    query, output, key memory    1 / sqrt(fan in)    unit queries and logits
    value memory                 sqrt(S / e)         unit outputs: with unit logits a token has sum_s a_s^2 = e / S
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_divisible, check_positive
from shared_attn.functional import external_attention, external_attention_residual, full_precision
from shared_attn.token_norm import normalise_tokens

__all__ = ["ExternalAttention", "ExternalAttentionBlock", "Fold", "Form", "MultiHeadExternalAttention"]

Form = Literal["memory", "query", "projected"]
Fold = Literal["auto", "always", "never"]


class ExternalAttention(Attention):
    """External attention with S memory slots: softmax over the tokens, then L1 over the slots, as one softmax.

    The cost is linear in N: 2 N C S multiply-adds with the maps folded, whatever the form.

    Args:
        dim: channels C.
        memory_size: slots S.
        form: "memory" has the two memories alone (2 C S parameters), "query" a map before the key memory, "projected"
            that and one after the value memory, as the paper's released block has (2 C^2 more). All three are the same
            family of functions; they differ in how they train.
        query_bias: a bias in the query map, as published weights have. It cancels, so its gradient is zero.
        fold: whether the maps are multiplied into the memories at each call instead of applied to the tokens. "auto"
            folds in eval mode always, and in training when it takes fewer multiply-adds: when the batch has more
            tokens than there are slots. The function and its gradients are the same.
        eps: added to the sum over the slots (1e-9 in the released code, 0 in the paper).

    Raises:
        ValueError: for an unknown form or fold, or for query_bias or fold where the form has no map.
    """

    name = "external"

    def __init__(
        self,
        dim: int,
        memory_size: int = 64,
        form: Form = "memory",
        query_bias: bool = False,
        fold: Fold = "auto",
        eps: float = 0.0,
    ) -> None:
        super().__init__(dim)
        check_positive(self.name, memory_size=memory_size)
        _check_choice("form", form, get_args(Form))
        _check_choice("fold", fold, get_args(Fold))
        _check_eps(self.name, eps)
        if form == "memory" and (query_bias or fold != "auto"):
            raise ValueError("attention 'external': form 'memory' has no map to fold or to give a query_bias")
        self.memory_size, self.fold, self.eps = memory_size, fold, eps
        self.query = None if form == "memory" else nn.Linear(dim, dim, bias=query_bias)
        self.key_memory = nn.Linear(dim, memory_size, bias=False)
        self.value_memory = nn.Linear(memory_size, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False) if form == "projected" else None
        _initialise(self.value_memory, *(m for m in (self.query, self.key_memory, self.output) if m is not None))

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        if self.folds(x):
            keys, values, key_bias = self.fold_maps()
            return external_attention(x, keys, values, key_bias, mask=mask, eps=self.eps)
        query = x if self.query is None else self.query(x)
        y = external_attention(query, self.key_memory.weight, self.value_memory.weight, mask=mask, eps=self.eps)
        return y if self.output is None else self.output(y)

    def gated_residual(
        self, x: Tensor, gate: Tensor, grid: Sequence[int] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        # Masked, the residual has its padding and the attention has not; and a hook is called with the attention alone.
        if mask is not None or self._forward_hooks or self._forward_pre_hooks or not self.folds(x):
            return super().gated_residual(x, gate, grid, mask)
        x, _, _ = self._check(x, grid, None)
        keys, values, key_bias = self.fold_maps()
        return external_attention_residual(x, keys, values, key_bias, gate=gate, eps=self.eps)

    def folds(self, x: Tensor) -> bool:
        """Whether the maps are folded for these tokens.

        A map costs B N C^2 multiply-adds applied to the tokens and S C^2 folded, forward and backward in proportion.
        """
        if self.fold == "auto":
            return not self.training or x.shape[0] * x.shape[1] > self.memory_size
        return self.fold == "always"

    def fold_maps(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The memories with the maps multiplied in: keys (S, C), values (C, S), and the key bias (S,) or None."""
        keys, values, key_bias = self.key_memory.weight, self.value_memory.weight, None
        with full_precision(keys):
            if self.query is not None:
                key_bias = None if self.query.bias is None else keys @ self.query.bias
                keys = keys @ self.query.weight
            if self.output is not None:
                values = self.output.weight @ values
        return keys, values, key_bias


class ExternalAttentionBlock(Attention):
    """The paper's whole block (EANet): relu(x + batch_norm(projected external attention of x)).

    2 C^2 + 2 C S + 3 C parameters. In eval mode the batch norm folds into the values too, so the block is two thin
    matrix products, a softmax, and the residual.

    Args: as ExternalAttention; eps defaults to the released code's.
    """

    name = "external block"

    def __init__(self, dim: int, memory_size: int = 64, fold: Fold = "auto", eps: float = 1e-9) -> None:
        super().__init__(dim)
        self.attention = ExternalAttention(dim, memory_size, "projected", query_bias=True, fold=fold, eps=eps)
        self.norm = nn.BatchNorm1d(dim)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        if self.training or not self.attention.folds(x):
            return F.relu(x + normalise_tokens(self.norm, self.attention(x, grid, mask), mask), inplace=True)
        keys, values, key_bias = self.attention.fold_maps()
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None, "the norm tracks its statistics"
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        shift = self.norm.bias - scale * mean
        values = scale.unsqueeze(1) * values
        return external_attention_residual(
            x, keys, values, key_bias, shift, relu=True, mask=mask, eps=self.attention.eps
        )


class MultiHeadExternalAttention(Attention):
    """Multi-head external attention (arXiv 2105.02358, algorithm 2, as in the authors' EAMLP).

    A query map widens C to `expansion` C; `expansion` num_heads heads of width D = C / num_heads share one pair of
    memories with biases; an output map narrows again. Folding the maps into the memories of every head would not save
    anything. The biases of the query map and of the key memory cancel in the softmax over the tokens.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads before the widening.
        memory_size: slots S.
        expansion: the paper's coef.
        eps: added to the sum over the slots (1e-9 in the released code).
    """

    name = "multihead_external"

    def __init__(
        self, dim: int, num_heads: int = 8, memory_size: int = 64, expansion: int = 4, eps: float = 0.0
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        check_positive(self.name, memory_size=memory_size, expansion=expansion)
        _check_eps(self.name, eps)
        self.num_heads, self.eps = expansion * num_heads, eps
        self.query = nn.Linear(dim, expansion * dim)
        self.key_memory = nn.Linear(dim // num_heads, memory_size)
        self.value_memory = nn.Linear(memory_size, dim // num_heads)
        self.output = nn.Linear(expansion * dim, dim)
        _initialise(self.value_memory, self.query, self.key_memory, self.output)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        query = self.query(x).view(*x.shape[:2], self.num_heads, -1)  # (B, N, H, D)
        keys, values = self.key_memory, self.value_memory
        y: Tensor = external_attention(
            query, keys.weight, values.weight, keys.bias, values.bias, mask=mask, eps=self.eps
        )
        y = self.output(y.flatten(2))  # (B, N, C)
        return y


def _initialise(value_memory: nn.Linear, *maps: nn.Linear) -> None:
    nn.init.normal_(value_memory.weight, std=math.sqrt(value_memory.in_features / math.e))
    for layer in maps:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for layer in (value_memory, *maps):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"attention 'external': {option} must be one of {', '.join(choices)}; got {value!r}")


def _check_eps(owner: str, eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(f"attention {owner!r}: eps must be in [0, 1), got {eps!r}")
