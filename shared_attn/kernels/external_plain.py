"""The twin of the external attention kernels in plain PyTorch: their operator's backend on a CPU, what they are held
against, and what differentiates the operator a second time.

Legend: B batch, N tokens, C channels, S memory slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared_attn.functional import external_attention_gradients, external_attention_saving
from shared_attn.kernels.traffic import keeps_logits

__all__ = ["attend", "backward", "empty_outputs", "forward", "through_gate"]


def empty_outputs(
    x: Tensor, keys: Tensor, values: Tensor, gate: Tensor | None, residual: bool, product_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's outputs, to be filled: y, the logits (empty where they are not kept) and L.

    y has the dtype that the sums and products of its epilogue have in plain PyTorch; behind a residual it is laid out
    as x is.
    """
    B, N, C = x.shape
    S, kind = keys.shape[0], torch.promote_types(x.dtype, torch.float32)
    dtype = product_dtype if gate is None else torch.promote_types(product_dtype, gate.dtype)
    if residual:
        y = torch.empty_like(x, dtype=torch.promote_types(dtype, x.dtype))
    else:
        y = x.new_empty((B, N, values.shape[0]), dtype=dtype)
    kept = keeps_logits(C, S, x.dtype.itemsize, residual)
    return y, x.new_empty((B, N, S) if kept else (0,), dtype=kind), x.new_empty((B, S), dtype=kind)


def forward(
    outputs: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
    product_dtype: torch.dtype,
) -> None:
    """Fills the outputs."""
    found = attend(x, keys, values, value_bias, gate, mask, eps, residual, relu, product_dtype)
    for output, value in zip(outputs, found, strict=True):
        if output.numel():
            output.copy_(value)


def attend(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's outputs, with the logits in any case."""
    real = _attendable(mask)
    attended, logits, log_mass = external_attention_saving(x, keys, values, None, real, eps, product_dtype)
    if value_bias is not None:  # out of place, because this stands for the operator in functional graphs
        attended = (attended + value_bias).to(attended.dtype)
    if mask is not None:
        attended = attended.masked_fill(~mask.unsqueeze(-1), 0)
    if gate is not None:
        attended = gate * attended
    if residual:
        attended = x + attended
    return attended.relu() if relu else attended, logits, log_mass.squeeze(1)


def backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    logits: Tensor | None,
    log_mass: Tensor | None,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, keys, values, value_bias and gate, None without one; differentiable where the logits are None."""
    if relu:
        assert y is not None, "the gradient behind a ReLU is masked by its output"
        grad = grad * (y > 0)
    wide = torch.promote_types(x.dtype, torch.float32)
    attended = grad.to(wide)
    if mask is not None:
        attended = attended.masked_fill(~mask.unsqueeze(-1), 0)
    if logits is not None and not logits.numel():
        logits = None
    mass = None if log_mass is None else log_mass.unsqueeze(1)
    # With the gate on the values instead of the gradient, the sums below give the gate's gradient without y.
    gated = values.to(wide) if gate is None else values.to(wide) * gate
    grad_x, grad_keys, grad_values = external_attention_gradients(
        attended, x, keys, gated, _attendable(mask), logits, mass, eps, wide
    )
    assert grad_x is not None and grad_values is not None
    grad_bias = None if value_bias is None else attended.sum(dim=(0, 1))
    if residual:
        grad_x = grad_x + grad.to(x.dtype)
    return grad_x, grad_keys, *through_gate(grad_values, grad_bias, values, value_bias, gate)


def through_gate(
    grad_values: Tensor, grad_bias: Tensor | None, values: Tensor, value_bias: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of values, value_bias and gate from those of gate * values and gate * value_bias."""
    grad_gate = None
    if gate is not None:
        grad_gate = (grad_values * values).sum()
        grad_values = grad_values * gate
        if grad_bias is not None and value_bias is not None:
            grad_gate = grad_gate + (grad_bias * value_bias).sum()
            grad_bias = grad_bias * gate
        grad_gate = grad_gate.to(gate.dtype).reshape(gate.shape)
    if grad_bias is not None and value_bias is not None:
        grad_bias = grad_bias.to(value_bias.dtype)
    return grad_values.to(values.dtype), grad_bias, grad_gate


def _attendable(mask: Tensor | None) -> Tensor | None:
    """(B, N, 1); all True in a sample without any real token, whose output and gradients are masked anyway."""
    return None if mask is None else (mask | ~mask.any(dim=1, keepdim=True)).unsqueeze(-1)
