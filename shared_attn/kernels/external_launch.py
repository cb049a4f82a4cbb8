"""Launches the Triton kernels of external attention: the backend of their operator on CUDA.

Legend: B batch, N tokens, C channels, S memory slots, T tiles of tokens in a sample, W channels of the output.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from shared_attn.kernels import external_triton as kernels
from shared_attn.kernels.external_plain import through_gate
from shared_attn.kernels.tiling import COMBINED_TILES, LARGE_SHARED_MEMORY, Tiling, padded_slots, tiling

__all__ = ["backward", "forward"]

_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
    y, kept_logits, log_mass = outputs
    logits = kept_logits if kept_logits.numel() else None
    x, keys, values, mask = _addressable(x), keys.contiguous(), values.contiguous(), _bytes(mask)
    B, N, C = x.shape
    S, W = keys.shape[0], values.shape[0]
    chosen = tiling("forward", N, max(C, W), S, x.dtype, _shared_memory(x))
    T = -(-N // chosen.tokens)
    launch = _options(chosen, S)
    with _device(x):
        partials: Tensor | None = x.new_empty((B, T, S), dtype=torch.float32)
        kernels.column_partials[(B * T,)](
            x, keys, mask, partials, logits, N, C, S, T, *x.stride(), PRECISION=_precision(), **launch
        )
        if T > COMBINED_TILES:
            kernels.combine_partials[(B,)](partials, log_mass, S, T, BLOCK_T=64, BLOCK_S=padded_slots(S))
            partials = None
        kernels.attend[(B * T,)](
            x, keys, values, _contiguous(value_bias), gate, mask, partials, log_mass, logits, y,
            _log(eps), N, C, W, S, T, *x.stride(), *y.stride(),
            RESIDUAL=residual, RELU=relu, PRODUCT=_TRITON_DTYPES[product_dtype], PRECISION=_precision(),
            BLOCK_T=COMBINED_TILES, **launch,
        )  # fmt: skip


def backward(
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
    relu: bool,  # noqa: ARG001  # then y is there
) -> tuple[Tensor | None, ...]:
    """Gradients of x, keys, values, value_bias and gate; None without one."""
    dx = torch.empty_like(x)
    x, grad, y = _addressable(x), _addressable(grad), None if y is None else _addressable(y)
    keys, values, mask = keys.contiguous(), values.contiguous(), _bytes(mask)
    B, N, C = x.shape
    S, W = keys.shape[0], values.shape[0]
    strides = (*grad.stride(), *(grad if y is None else y).stride(), *x.stride())
    kept = logits.numel() > 0
    with _device(x):
        if not kept:
            logits = x.new_empty((B, N, S), dtype=torch.float32)
        dz = torch.empty_like(logits)
        chosen = tiling("slot_gradients", N, max(C, W), S, x.dtype, _shared_memory(x))
        T = -(-N // chosen.tokens)
        column_sums = x.new_empty((B, T, S), dtype=torch.float32)
        kernels.slot_gradients[(B * T,)](
            grad, y, x, keys, values, gate, mask, log_mass, logits, dz, column_sums, _log(eps), N, C, W, S, T, *strides,
            KEPT=kept, PRECISION=_precision(), **_options(chosen, S),
        )  # fmt: skip
        chosen = tiling("token_gradients", N, max(C, W), S, x.dtype, _shared_memory(x))
        T = -(-N // chosen.tokens)
        channel_blocks = -(-max(C, W) // chosen.channels)
        # Each program leaves its sums of both memories' gradients, so there are only as many as keep the device busy.
        each = -(-B * T // max(1, _programs(x) // channel_blocks))
        parts = -(-B * T // each)
        dkeys, dvalues = (x.new_empty((parts, S, width), dtype=torch.float32) for width in (C, W))
        dbias = None if value_bias is None else x.new_empty((parts, W), dtype=torch.float32)
        kernels.token_gradients[(parts * channel_blocks,)](
            grad, y, x, keys, mask, log_mass, logits, dz, column_sums.sum(dim=1), dx, dkeys, dvalues, dbias,
            _log(eps), N, C, W, S, T, B * T, each, channel_blocks, *strides, *dx.stride(),
            RESIDUAL=residual, PRECISION=_precision(), **_options(chosen, S),
        )  # fmt: skip
        grad_values, grad_bias = dvalues.sum(dim=0).T.contiguous(), None if dbias is None else dbias.sum(dim=0)
        return dx, dkeys.sum(dim=0).to(keys.dtype), *through_gate(grad_values, grad_bias, values, value_bias, gate)


def _options(chosen: Tiling, slots: int) -> dict[str, Any]:
    """Block sizes, and how Triton compiles and runs the kernel."""
    return {
        "BLOCK_N": chosen.tokens,
        "BLOCK_C": chosen.channels,
        "BLOCK_S": padded_slots(slots),
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        "enable_fp_fusion": True,
    }


def _precision() -> str:
    """Of float32 products: exact unless the user lets matrix products run in TF32, as torch's own do then."""
    matmul = torch.backends.cuda.matmul
    # The older setting cannot be asked once the newer one was used; before torch 2.9 there is only the older one.
    chosen = getattr(matmul, "fp32_precision", None) or ("tf32" if matmul.allow_tf32 else "ieee")
    return "tf32" if chosen == "tf32" else "ieee"


def _log(eps: float) -> float:
    return math.log(eps) if eps > 0 else -math.inf


def _addressable(x: Tensor) -> Tensor:
    """x, copied where its rows and columns are so far apart that offsets within a sample do not fit into 32 bits, or
    where neither lie together."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if 1 in x.stride()[1:] and span < 2**31 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _programs(x: Tensor) -> int:
    """How many programs of eight warps keep the device busy: one a multiprocessor takes most of its registers."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4


def _shared_memory(x: Tensor) -> int:
    """Bytes that a program may have."""
    properties = torch.cuda.get_device_properties(x.device) if x.is_cuda else None
    return getattr(properties, "shared_memory_per_block_optin", LARGE_SHARED_MEMORY)


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
