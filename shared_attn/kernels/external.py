"""External attention as a PyTorch operator, one node to torch.compile and torch.export: Triton kernels on CUDA, the
plain twin elsewhere.

    torch.ops.shared_attn.external_attention(x, keys, values, key_bias, value_bias, gate, mask, eps, residual, relu,
                                             product_dtype) -> y, logits, log_mass

computes y = [relu]([x +] [gate *] external attention), arguments as in `shared_attn.functional`, and hands out what its
backward needs: L (B, S), and the float32 logits (B, N, S), empty where reading x again moves fewer bytes.
Importing `shared_attn` registers it.

Legend: B batch, N tokens, C channels, S memory slots.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from shared_attn.kernels import external_plain

__all__ = ["external_attention", "external_attention_backward"]

_OPTIONS = "Tensor? gate, Tensor? mask, float eps, bool residual, bool relu"


def _backend(x: Tensor) -> ModuleType:
    """The module with `forward` and `backward` for the device of x."""
    if x.is_cuda:
        from shared_attn.kernels import external_launch

        return external_launch
    return external_plain


@torch.library.custom_op(
    "shared_attn::external_attention",
    mutates_args=(),
    schema="(Tensor x, Tensor keys, Tensor values, Tensor? key_bias, Tensor? value_bias, "
    f"{_OPTIONS}, ScalarType product_dtype) -> (Tensor, Tensor, Tensor)",
)
def external_attention(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,  # noqa: ARG001  # it cancels; here so that it gets its gradient, zero
    value_bias: Tensor | None,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = external_plain.empty_outputs(x, keys, values, gate, residual, product_dtype)
    _backend(x).forward(outputs, x, keys, values, value_bias, gate, mask, eps, residual, relu, product_dtype)
    return outputs


@external_attention.register_fake
def _(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    _key_bias: Tensor | None,
    _value_bias: Tensor | None,
    gate: Tensor | None,
    _mask: Tensor | None,
    _eps: float,
    residual: bool,
    _relu: bool,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return external_plain.empty_outputs(x, keys, values, gate, residual, product_dtype)


@register_decomposition(torch.ops.shared_attn.external_attention.default)
def _in_plain_operators(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    _key_bias: Tensor | None,
    value_bias: Tensor | None,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """For ONNX, whose exporter consults torch's table; torch.compile and torch.export keep the operator."""
    return external_plain.attend(x, keys, values, value_bias, gate, mask, eps, residual, relu, product_dtype)


@torch.library.custom_op(
    "shared_attn::external_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor? y, Tensor x, Tensor keys, Tensor values, Tensor? value_bias, "
    f"Tensor logits, Tensor log_mass, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def external_attention_backward(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    logits: Tensor,
    log_mass: Tensor,
    gate: Tensor | None,
    mask: Tensor | None,
    eps: float,
    residual: bool,
    relu: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, laid out as x is, and of keys, values, value_bias and gate; of one not there, an empty tensor."""
    saved = (x, keys, values, value_bias, logits, log_mass, gate, mask)
    grad_x, *others = _backend(x).backward(grad, y, *saved, eps, residual, relu)
    laid_out = torch.empty_like(x)
    if grad_x.stride() != laid_out.stride():
        grad_x = laid_out.copy_(grad_x)
    return grad_x, *(x.new_empty(0) if gradient is None else gradient for gradient in others)


@external_attention_backward.register_fake
def _(
    _grad: Tensor,
    _y: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    value_bias: Tensor | None,
    _logits: Tensor,
    _log_mass: Tensor,
    gate: Tensor | None,
    *_options: Any,
) -> tuple[Tensor, ...]:
    others = (keys, values, value_bias, gate)
    return torch.empty_like(x), *(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in others)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, keys, values, key_bias, value_bias, gate, mask, eps, residual, relu, _ = inputs
    y, logits, log_mass = output
    ctx.mark_non_differentiable(logits, log_mass)
    ctx.set_materialize_grads(False)  # or zeros as large as the logits would be made
    ctx.save_for_backward(y if relu else None, x, keys, values, key_bias, value_bias, logits, log_mass, gate, mask)
    ctx.eps, ctx.residual, ctx.relu = eps, residual, relu


def _differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    y, x, keys, values, key_bias, value_bias, logits, log_mass, gate, mask = ctx.saved_tensors
    options = (ctx.eps, ctx.residual, ctx.relu)
    gradients: tuple[Tensor | None, ...] = (None,) * 5
    if grad is not None and torch.is_grad_enabled():  # create_graph: in plain PyTorch, which differentiates it again
        gradients = external_plain.backward(grad, y, x, keys, values, value_bias, None, None, gate, mask, *options)
    elif grad is not None:
        saved = (x, keys, values, value_bias, logits, log_mass, gate, mask)
        gradients = external_attention_backward(grad, y, *saved, *options)
    grad_x, grad_keys, grad_values, grad_value_bias, grad_gate = gradients
    grad_key_bias = None if key_bias is None else torch.zeros_like(key_bias)
    wanted = (grad_x, grad_keys, grad_values, grad_key_bias, grad_value_bias, grad_gate)
    needed = ctx.needs_input_grad[: len(wanted)]
    return (*(g if need else None for g, need in zip(wanted, needed, strict=True)), *(None,) * 5)


external_attention.register_autograd(_differentiate, setup_context=_save)
