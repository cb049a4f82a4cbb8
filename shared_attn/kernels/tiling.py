"""How the external attention kernels cut their work: a table by slots and dtype, and what a tuning run may try.

Legend: N tokens, C channels, S memory slots.

Reasoned and compiled for sm_90 (registers and shared memory as the compiler reports them), not yet timed:
`shared_attn.kernels.benchmark.tune` finds better ones on a GPU. What bounds each row:

- A program holds one to three float32 tiles of tokens by all slots in registers (64 a thread at 128 x 64 and 4 warps),
  so tokens shrink as slots grow; Hopper's tensor cores want at least 64 tokens for 4 warps.
- Blocks of channels are 64 to 256 bytes a row, times stages in flight. The table needs up to 160 KiB of shared memory,
  as Ampere's and Hopper's server parts have; where a device gives a program less, tiles are half as large.
- float32 products run without tensor cores (unless TF32 is allowed), from registers: smaller tiles, less to spill.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

__all__ = ["COMBINED_TILES", "LARGE_SHARED_MEMORY", "Tiling", "candidates", "overridden", "padded_slots", "tiling"]

COMBINED_TILES = 16
"""Up to so many tiles a sample, each program of the second pass combines their sums itself, which saves a launch."""


LARGE_SHARED_MEMORY = 160 * 1024
_OVERRIDES: dict[str, Tiling] = {}


class Tiling(NamedTuple):
    """Tokens and channels of a tile, and how a program runs: warps, and stages of its software pipeline."""

    tokens: int
    channels: int
    warps: int
    stages: int


def padded_slots(slots: int) -> int:
    """The power of two that a tile holds: tensor cores take no less than 16."""
    return max(16, 1 << (slots - 1).bit_length())


def tiling(
    kernel: str, tokens: int, channels: int, slots: int, dtype: torch.dtype, shared_memory: int = LARGE_SHARED_MEMORY
) -> Tiling:
    """The table's choice for "forward" (both passes), "slot_gradients" or "token_gradients"."""
    table = _FLOAT32 if dtype == torch.float32 else _HALF
    chosen = _OVERRIDES.get(kernel) or next(choice for most, choice in table[kernel] if slots <= most)
    if shared_memory < LARGE_SHARED_MEMORY:
        smaller = {"tokens": chosen.tokens // 2} if chosen.tokens > 16 else {"channels": chosen.channels // 2}
        chosen = chosen._replace(**smaller)
    return chosen._replace(tokens=_fitted(chosen.tokens, tokens), channels=_fitted(chosen.channels, channels))


@contextmanager
def overridden(kernel: str, choice: Tiling) -> Iterator[None]:
    """Another choice than the table's, for a tuning run or a test."""
    _OVERRIDES[kernel] = choice
    try:
        yield
    finally:
        del _OVERRIDES[kernel]


def candidates(kernel: str, slots: int, dtype: torch.dtype) -> list[Tiling]:
    """What a tuning run times beside the table's choice, tiles that are sure to spill left out."""
    half, padded = dtype != torch.float32, padded_slots(slots)
    found = [
        Tiling(tokens, channels, warps, stages)
        for tokens in ((32, 64, 128) if half else (32, 64))
        for channels in ((32, 64, 128) if half else (16, 32, 64))
        for warps in (4, 8)
        for stages in (2, 3, 4)
        if tokens * padded <= 64 * 32 * warps
        and (kernel != "token_gradients" or 2 * padded * channels <= 128 * 32 * warps)
    ]
    return [choice for choice in found if choice.stages * choice.channels * (choice.tokens + padded) * 4 <= 200_000]


_HALF: dict[str, list[tuple[int, Tiling]]] = {
    "forward": [(64, Tiling(128, 64, 4, 3)), (128, Tiling(64, 64, 8, 3)), (256, Tiling(64, 64, 8, 2))],
    "slot_gradients": [(64, Tiling(64, 64, 4, 3)), (128, Tiling(64, 64, 8, 2)), (256, Tiling(64, 32, 8, 2))],
    "token_gradients": [(64, Tiling(64, 128, 8, 2)), (128, Tiling(32, 64, 8, 2)), (256, Tiling(32, 32, 8, 2))],
}
_FLOAT32: dict[str, list[tuple[int, Tiling]]] = {
    "forward": [(64, Tiling(64, 32, 4, 2)), (128, Tiling(64, 32, 8, 2)), (256, Tiling(32, 32, 8, 2))],
    "slot_gradients": [(64, Tiling(64, 32, 4, 2)), (128, Tiling(32, 32, 8, 2)), (256, Tiling(32, 32, 8, 2))],
    "token_gradients": [(64, Tiling(32, 64, 8, 2)), (128, Tiling(32, 32, 8, 2)), (256, Tiling(16, 32, 8, 2))],
}


def _fitted(block: int, size: int) -> int:
    return min(block, padded_slots(size))
