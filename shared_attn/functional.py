"""The mathematics of the attention variants as pure functions on (B, N, C).

Legend: B batch, N tokens, C channels, S memory slots, M keys, D query width, H heads.

External attention (arXiv 2105.02358, eq. 5-6 and algorithm 1) scores N tokens against S learnt slots, A = x K^T, and
normalises twice: a softmax over the **tokens** of each slot, then a division by the sum over the **slots** of a token.
Both together are one softmax. With L_s = logsumexp_n A_ns, the log of the mass a slot receives from all tokens,

    p_ns = exp(A_ns - L_s),    a_ns = p_ns / sum_t p_nt = softmax_s(A_ns - L_s),    y = a V.

So one reduction over the tokens gives L, one row-wise softmax gives the map, and no exponent overflows or leaves 0 / 0.
The released code divides by (sum + 1e-9); that eps is one more slot with p = eps and no value. PCT's offset attention
normalises in the same order, with the tokens themselves as slots.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.kernels import takes_external_attention
from shared_attn.products import batched_product

__all__ = [
    "double_normalised_attention",
    "external_attention",
    "external_attention_gradients",
    "external_attention_paper",
    "external_attention_residual",
    "external_attention_saving",
    "full_precision",
    "softmax_attention",
]


def external_attention_paper(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    *,
    eps: float = 1e-9,
) -> Tensor:
    """External attention in the paper's three steps: the reference that `external_attention` is held against.

    Args:
        x: (B, N, ..., C).
        keys: (S, C), the paper's M_k.
        values: (C', S), the paper's M_v transposed.
        key_bias: (S,) added to the logits; value_bias: (C',) added to the output.
        eps: added to the sum over the slots (1e-9 in the released code).

    Returns:
        (B, N, ..., C'). NaN where every slot of a token underflows and eps is 0.
    """
    attention = F.linear(x, keys, key_bias).softmax(dim=1)  # (B, N, ..., S), over the tokens
    attention = attention / (eps + attention.sum(dim=-1, keepdim=True))  # L1 over the slots
    return F.linear(attention, values, value_bias)


def external_attention(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """External attention in its one-softmax form, with a closed-form backward that keeps the logits and L only.

    Logits and normalisation are at least float32 whatever the dtype of x or autocast. Gradients of any order are right.
    On CUDA, tokens (B, N, C) go through the Triton kernels of `shared_attn.kernels.external`, which may keep L alone.

    Args:
        x: (B, N, ..., C); dimensions between tokens and channels (heads) are independent of each other.
        keys: (S, C).
        values: (C', S).
        key_bias: (S,) added to the logits. A constant a slot cancels in the softmax over the tokens, so neither the
            output nor any gradient depends on it; its own gradient is exactly zero.
        value_bias: (C',) added to the output.
        mask: (B, N) bool, True = real. Padding must be finite; it takes no part in any sum and its output is zero.
        eps: 0, or what is added to the sum over the slots (1e-9 in the released code).

    Returns:
        (B, N, ..., C') in the dtype of x (under autocast: autocast's).
    """
    y: Tensor
    if takes_external_attention(x, keys, values):
        options = (None, mask, eps, False, False, _product_dtype(x))
        y = torch.ops.shared_attn.external_attention(x, keys, values, key_bias, value_bias, *options)[0]
        return y
    if mask is not None:
        mask = mask.reshape(*mask.shape, *(1,) * (x.dim() - 2))  # (B, N, ..., 1)
    real = None if mask is None else _attendable(mask)
    y = _ExternalAttention.apply(x, keys, values, key_bias, value_bias, real, eps)
    return y if mask is None else y.masked_fill(~mask, 0)


def external_attention_residual(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    relu: bool = False,
    mask: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """x + gate * external_attention(x, ...), through a ReLU where asked for; on CUDA in the epilogue of the kernels.

    Args:
        x: (B, N, C); keys: (S, C); values: (C, S).
        gate: one number, (1,); None is 1.
        mask: (B, N) bool; padding is left as it is (then the ReLU).

    Returns:
        (B, N, C) in the dtype that the sum has in plain PyTorch, laid out as x is where that is dense.
    """
    y: Tensor
    if takes_external_attention(x, keys, values, gate):
        options = (gate, mask, eps, True, relu, _product_dtype(x))
        y = torch.ops.shared_attn.external_attention(x, keys, values, key_bias, value_bias, *options)[0]
        return y
    y = external_attention(x, keys, values, key_bias, value_bias, mask=mask, eps=eps)
    if gate is not None:
        y = torch.addcmul(x, gate, y)
    elif y.dtype == x.dtype and y.stride() == x.stride():
        y = y.add_(x)  # y is nobody else's, and at large N a fresh tensor costs more than the sum
    else:
        y = x + y
    return y.relu_() if relu else y


def double_normalised_attention(
    query_key: Tensor, value: Tensor, *, mask: Tensor | None = None, eps: float = 1e-9
) -> Tensor:
    """PCT's attention map applied to its values (arXiv 2012.09688, eq. 3-6, queries and keys shared as in its code).

    A = softmax of q q^T over its last axis, divided by (eps + sum over the other axis), r_m = sum_n A_nm v_n. The
    softmax thus runs over the output tokens m and the L1 over the sources n: external attention with the tokens as
    slots. At least float32 inside.

    Args:
        query_key: (B, N, D); value: (B, N, C).
        mask: (B, N) bool, True = real. Padding must be finite; its output rows are meaningless.

    Returns:
        (B, N, C) in the dtype of value.
    """
    with full_precision(query_key):
        query_key = query_key.to(_at_least_float32(query_key))
        logits = batched_product(query_key, query_key.transpose(1, 2))  # (B, N, N), symmetric
        if mask is not None:
            logits = logits.masked_fill(~_attendable(mask).unsqueeze(1), float("-inf"))
        # A source's mass over the outputs m is a row's, because the logits are symmetric.
        log_mass = logits.logsumexp(dim=2).unsqueeze(1)  # (B, 1, N)
        attention = _normalise_slots(logits - log_mass, eps)
        return batched_product(attention.to(value.dtype), value)


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    num_heads: int = 1,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention, softmax_m(scale q k^T) v a head, by torch's fused kernels.

    Args:
        query: (B, N, H D); key: (B, M, H D); value: (B, M, H E).
        mask: (B, M) bool, True = real key.
        scale: of the logits; None is 1 / sqrt(D).

    Returns:
        (B, N, H E).
    """
    # Sizes in full: from a -1 a graph for any number of tokens would have to prove a divisibility.
    q, k, v = (x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2) for x in (query, key, value))
    attended = None if mask is None else _attendable(mask)[:, None, None, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attended, scale=scale)  # (B, H, N, E)
    return y.transpose(1, 2).flatten(2)  # (B, N, H E)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off for a block of work on x: it would round logits before they are normalised."""
    return torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else nullcontext()


class _ExternalAttention(torch.autograd.Function):
    """y = a V + bias with the gradients in closed form: with da = g V and every sum over the axis named,

    dz = a (da - <a, da>_s),  c_s = sum_n dz,  dA = dz - p c,  dx = dA K,  dK = dA^T x,  dV = g^T a.

    dz is the softmax over the slots; -p c is what reaches the logits through L, whose derivative is p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        key_bias: Tensor | None,
        value_bias: Tensor | None,
        real: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.product_dtype = _product_dtype(x)
        y, logits, log_mass = external_attention_saving(x, keys, values, value_bias, real, eps, ctx.product_dtype)
        ctx.save_for_backward(x, keys, values, key_bias, value_bias, real, logits, log_mass)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, values, key_bias, value_bias, real, logits, log_mass = ctx.saved_tensors
        need_x, need_keys, need_values, need_key_bias, need_value_bias = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():  # create_graph: the saved logits carry no graph, so make them again with one
            logits = None
        grad_x, grad_keys, grad_values = external_attention_gradients(
            grad,
            x,
            keys,
            values,
            real,
            logits,
            log_mass,
            ctx.eps,
            ctx.product_dtype,
            needs=(need_x, need_keys, need_values),
        )
        grad_key_bias = torch.zeros_like(key_bias) if need_key_bias else None
        grad_value_bias = _sum_of_rows(grad, x).to(value_bias.dtype) if need_value_bias else None
        return grad_x, grad_keys, grad_values, grad_key_bias, grad_value_bias, None, None


def external_attention_saving(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    real: Tensor | None,
    eps: float,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """External attention's output with what its gradients need: (B, N, ..., C'), the logits (B, N, ..., S) and L.

    Args:
        real: (B, N, ..., 1) bool, with at least one True a sample; the output of other tokens has no meaning.
        product_dtype: of the attention map and the values in their product, and of the output.
    """
    with full_precision(x):
        logits, log_mass = _logits_and_mass(x, keys, real)
        attention = _normalise_slots(logits - log_mass, eps)  # (B, N, ..., S)
        y = F.linear(attention.to(product_dtype), values.to(product_dtype))  # (B, N, ..., C')
        if value_bias is not None:
            # In place: a product that starts from a broadcast bias writes (N, C') once more. Not while compiling, where
            # torch 2.11 drops every gradient of a function that changes its output so.
            y = y + value_bias if torch.compiler.is_compiling() else y.add_(value_bias)
    return y, logits, log_mass


def external_attention_gradients(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    real: Tensor | None,
    logits: Tensor | None,
    log_mass: Tensor | None,
    eps: float,
    product_dtype: torch.dtype,
    *,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, keys and values in closed form, themselves differentiable where the logits are None.

    Args:
        grad: of the output, zero where a token is not real; logits, log_mass: as saved, or None to make them again.
        product_dtype: as the output's; also of the products with the output's gradient and of x's gradient.
        needs: which of the three to compute; the others are None.
    """
    grad_x = grad_keys = grad_values = None
    with full_precision(x):
        if logits is None or log_mass is None:
            logits, log_mass = _logits_and_mass(x, keys, real)
        shifted = logits - log_mass
        attention = _normalise_slots(shifted, eps)
        exact, grad = attention.dtype, grad.to(product_dtype)
        if needs[0] or needs[1]:
            grad_attention = (grad @ values.to(grad.dtype)).to(exact)
            # a (da - <a, da>_s), in one pass.
            grad_shifted = torch.ops.aten._softmax_backward_data(grad_attention, attention, -1, exact)
            mass = shifted.exp_() if real is None else shifted.exp_() * real
            grad_logits = torch.addcmul(grad_shifted, mass, grad_shifted.sum(dim=1, keepdim=True), value=-1)
            if needs[0]:
                grad_x = (grad_logits.to(grad.dtype) @ keys.to(grad.dtype)).to(x.dtype)
            if needs[1]:  # the terms of this sum nearly cancel
                grad_keys = (grad_logits.flatten(0, -2).mT @ x.to(exact).flatten(0, -2)).to(keys.dtype)
        if needs[2]:
            grad_values = (grad.flatten(0, -2).mT @ attention.to(grad.dtype).flatten(0, -2)).to(values.dtype)
    return grad_x, grad_keys, grad_values


def _sum_of_rows(grad: Tensor, x: Tensor) -> Tensor:
    with full_precision(x):
        return grad.to(_at_least_float32(x)).flatten(0, -2).sum(dim=0)


def _logits_and_mass(x: Tensor, keys: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """A = x K^T (B, N, ..., S) and L = logsumexp over the real tokens (B, 1, ..., S), at least float32."""
    dtype = _at_least_float32(x)
    logits = F.linear(x.to(dtype), keys.to(dtype))
    counted = logits if real is None else logits.masked_fill(~real, float("-inf"))
    return logits, counted.logsumexp(dim=1, keepdim=True)


def _normalise_slots(shifted: Tensor, eps: float) -> Tensor:
    """p / (eps + sum over the last axis of p), p = exp(shifted).

    Without eps this is a softmax. With it the denominator is at least eps, so p itself may underflow unharmed.
    """
    if eps == 0:
        return shifted.softmax(dim=-1)
    mass = shifted.exp()
    return mass / (mass.sum(dim=-1, keepdim=True) + eps)


def _attendable(mask: Tensor) -> Tensor:
    """The mask, all True in a sample without any real token: a softmax over nothing would be NaN."""
    return mask | ~mask.any(dim=1, keepdim=True)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# Asked once: inside a graph torch 2.6 cannot be.
_KINDS = ("cpu", "cuda", "hpu", "ipu", "maia", "mps", "mtia", "xla", "xpu")
_WITH_AUTOCAST = frozenset(kind for kind in _KINDS if torch.amp.is_autocast_available(kind))


def autocast_enabled(x: Tensor) -> bool:
    """Whether operators on x are cast just now; False for devices that cannot."""
    return x.device.type in _WITH_AUTOCAST and torch.is_autocast_enabled(x.device.type)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear map of x would answer in here."""
    lowered = autocast_enabled(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype
