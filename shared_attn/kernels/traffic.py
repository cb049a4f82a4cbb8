"""Bytes that the external attention kernels move through device memory, and the fewest that anything could.

Legend: B batch, N tokens, C channels, S memory slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Traffic", "expected_bytes", "keeps_logits"]

_FLOAT32 = 4


class Traffic(NamedTuple):
    """Bytes of tensors with N rows; memories, L and partial sums are small beside them unless N is tiny."""

    floor: int
    """Forward: x read once, the output written once."""
    forward: int
    """What the forward's two passes move."""
    backward_floor: int
    """Backward: x and the output's gradient read once, the gradient of x written once."""
    backward: int
    """What the backward's two passes move."""


def keeps_logits(channels: int, slots: int, itemsize: int, residual: bool) -> bool:
    """Whether the forward's second pass reads stored float32 logits, or x again: whichever moves fewer bytes.

    Storing moves 2 * 4 S bytes a token (written, then read), reading x again C * itemsize. Behind a residual the second
    pass reads x in any case, so logits are never worth storing.
    """
    return not residual and 2 * _FLOAT32 * slots <= channels * itemsize


def expected_bytes(
    B: int, N: int, C: int, S: int, dtype: torch.dtype, *, residual: bool = False, relu: bool = False
) -> Traffic:
    """The model behind the benchmark's fractions: C channels in and out, all of one dtype.

    The second loop over a tile's channels within one program is counted as a cache hit; so are the logits and dz that
    the blocks of channels of one tile share in the backward's second pass.
    """
    row, slots = C * dtype.itemsize, _FLOAT32 * S
    kept = keeps_logits(C, S, dtype.itemsize, residual)
    forward = 2 * row + (2 * slots if kept else row)
    grad = 2 * row if relu else row  # behind a ReLU its output is read beside the gradient
    slot_gradients = grad + (slots if kept else row + slots) + slots  # logits read, or made from x and written; dz
    token_gradients = grad + row + 2 * slots + row
    rows = (2 * row, forward, 3 * row, slot_gradients + token_gradients)
    return Traffic(*(B * N * each for each in rows))
