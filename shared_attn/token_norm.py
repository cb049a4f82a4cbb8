"""Batch normalisation of tokens.

Legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["normalise_tokens"]


def normalise_tokens(norm: nn.BatchNorm1d, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Batch norm over all tokens of the batch, (B, N, C) in and out.

    With a mask (B, N) only real tokens enter the statistics; the outputs of the others are zero.
    """
    if mask is None:
        y: Tensor = norm(x.flatten(0, 1)).view_as(x)
        return y
    normed: Tensor = norm(x[mask])  # (real tokens, C)
    return torch.zeros_like(x, dtype=normed.dtype).masked_scatter(mask.unsqueeze(-1), normed)
