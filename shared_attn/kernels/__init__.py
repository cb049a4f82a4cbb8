"""Triton kernels, each beside its plain-PyTorch twin; chosen by device, never by the user.

A machine without Triton or without the C compiler that Triton calls, or the environment variable SHARED_ATTN_KERNELS=0
(read at import), leaves the plain code.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import Tensor

__all__ = ["AVAILABLE", "MAX_SLOTS", "kernels_enabled", "takes_external_attention"]

AVAILABLE: bool = (
    os.environ.get("SHARED_ATTN_KERNELS", "1") != "0"
    and importlib.util.find_spec("triton") is not None
    and (os.name != "posix" or bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")))
    and torch.version.hip is None  # never tried there
)
MAX_SLOTS = 256
"""Memory slots that fit into the registers of one program."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_enabled(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a Triton kernel should do what is asked of these tensors: on CUDA from Ampere on, at most float32."""
    return (
        AVAILABLE
        and x.is_cuda
        and all(tensor is None or tensor.dtype in _DTYPES for tensor in (x, *others))
        and torch.cuda.get_device_properties(x.device).major >= 8
    )


def takes_external_attention(x: Tensor, keys: Tensor, values: Tensor, gate: Tensor | None = None) -> bool:
    """Whether external attention of these goes through its kernels: tokens (B, N, C) without heads, keys (S, C)."""
    return (
        kernels_enabled(x, keys, values, gate)
        and x.dim() == 3
        and x.shape[0] * x.shape[1] > 0
        and keys.shape[0] <= MAX_SLOTS
        and x.shape[1] * max(x.shape[2], *values.shape) < 2**31  # offsets within a sample have 32 bits, ...
        and x.shape[1] * x.stride(1) + x.shape[2] * x.stride(2) < 2**31  # ... in what is laid out as x is, too
    )
