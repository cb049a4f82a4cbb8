"""Matrix products of float32 on a CPU by oneDNN, which torch itself asks for half-precision products alone.

torch's own float32 product is MKL's. On processors that are not Intel's it leaves their wide vectors unused: measured
on a Zen 5 core, 75 to 110 GFLOP/s against oneDNN's 200 to 240. Elsewhere, and for other types, these are torch's own.

Legend: B batch, P rows, C channels in, D channels out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LinearMap", "batched_product", "linear", "product", "use_products"]

AVAILABLE: bool = hasattr(torch.ops.mkldnn, "_linear_pointwise")
LEAST_WORK = 2**20
"""Multiply-adds under which calling is what costs."""


def product(x: Tensor, rows: Tensor) -> Tensor:
    """x (P, C) times the transpose of rows (D, C), of one type: (P, D). Without gradients."""
    if AVAILABLE and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() * rows.shape[0] >= LEAST_WORK:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(rows), None, "none", [], "")
        return y
    return F.linear(x, rows)


class LinearMap(nn.Linear):
    """nn.Linear whose training steps in float32 on a CPU go through `product`.

    Under autocast, in torch.compile and torch.export, and where no gradient is wanted, it is nn.Linear: what is
    counted, exported or compared are torch's own operators.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_products(module: nn.Module) -> None:
    """Makes LinearMaps of all nn.Linear inside: the same parameters under the same names."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = LinearMap


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, by `product` where LinearMap says so."""
    if not _trains(x, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    y: Tensor = _Product.apply(x.flatten(0, -2), weight)
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for (B, P, C) and (B, C, D), each by `product` in a training step in float32 on a CPU."""
    if not _trains(a, b) or a[0].numel() * b.shape[2] < LEAST_WORK:
        return a @ b
    y: Tensor = _BatchedProduct.apply(a, b)
    return y


def _trains(*operands: Tensor) -> bool:
    return (
        AVAILABLE
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in operands)
        and any(x.requires_grad for x in operands)
    )


def _dense(matrix: Tensor) -> Tensor:
    """The matrix, copied unless its rows or columns lie end to end: others take oneDNN a thousand times longer."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: by operators that can be differentiated again
            return grad @ weight, grad.mT @ x
        need_x, need_weight = ctx.needs_input_grad
        return product(grad, weight.mT) if need_x else None, product(grad.mT, x.mT) if need_weight else None


class _BatchedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _each(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad @ b.mT, a.mT @ grad
        need_a, need_b = ctx.needs_input_grad
        return _each(grad, b.mT) if need_a else None, _each(a.mT, grad) if need_b else None


def _each(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([product(left, right.mT) for left, right in zip(a, b, strict=True)])
