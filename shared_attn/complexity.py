"""Parameters and multiply-adds, counted from a real forward rather than estimated from formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared_attn import create_attention, products

__all__ = ["Cost", "attention_cost", "count_multiply_adds", "count_parameters"]


@dataclass(frozen=True)
class Cost:
    """What a module costs: its trainable numbers, and the multiply-adds of one forward."""

    parameters: int
    multiply_adds: int


def attention_cost(name: str, dim: int, grid: Sequence[int], **options: Any) -> Cost:
    """The cost of a variant on one sample of tokens laid out as `grid`, in eval mode.

    The forward runs on the meta device, so any size is counted in milliseconds and without memory. For external
    attention with maps the folding itself is counted, because it happens at each call.

    Args:
        name, dim, options: as `shared_attn.create_attention`.
        grid: (H, W) or (N,).

    Raises:
        ValueError: as `create_attention`, and for a grid that is not one or two positive integers.
    """
    if len(grid) not in (1, 2) or any(size < 1 for size in grid):
        raise ValueError(f"grid must be (H, W) or (N,), positive; got {tuple(grid)}")
    with torch.device("meta"):
        attention = create_attention(name, dim, **options).eval()
        x = torch.empty(1, math.prod(grid), dim)
    with torch.no_grad():
        multiply_adds = count_multiply_adds(attention, x, grid=tuple(grid))
    return Cost(count_parameters(attention), multiply_adds)


def count_parameters(module: nn.Module) -> int:
    """How many trainable numbers a module has, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_multiply_adds(function: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Calls the function and counts the multiply-adds of every matrix product, convolution and fused attention in it.

    Works for modules and functions, on any device (on "meta" without memory), backward passes included. Elementwise
    work, norms, softmaxes and reductions are not counted, as in the field's tables.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CORRECTIONS)
    with counter:
        function(*args, **kwargs)
    return counter.get_total_flops() // 2


def _matrix_vector_flops(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector_flops(_added: Sequence[int], matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _rows_flops(x: Sequence[int], rows: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * rows[0]


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """q k^T and a v for shapes (B, H, N, D), (B, H, M, D), (B, H, M, E)."""
    pairs = math.prod(query[:-1]) * key[-2]
    return 2 * pairs * (query[-1] + value[-1])


def _convolution_backward_flops(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    needed: Sequence[bool],
    **_: Any,
) -> int:
    """Either gradient costs what forward does: every weight meets every pixel of the output, or input if transposed."""
    pixels = x[0] * math.prod((x if transposed else grad)[2:])
    return 2 * pixels * math.prod(weight) * (needed[0] + needed[1])


# Operators that torch's counter leaves out in some supported version, and one whose groups it counts wrongly.
_CORRECTIONS = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    torch.ops.aten.mv: _matrix_vector_flops,
    torch.ops.aten.dot: _matrix_vector_flops,
    torch.ops.aten.addmv: _added_matrix_vector_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    **({torch.ops.mkldnn._linear_pointwise: _rows_flops} if products.AVAILABLE else {}),
}
