"""Losses of the point networks: pure functions of tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Cross entropy (..., K), (...) -> scalar in float32; `smoothing` is what the true class gives away to the others.

    PCT_Pytorch spreads it over the K - 1 other classes, torch over all K: hence the factor K / (K - 1).
    """
    K = logits.shape[-1]
    spread = smoothing * K / (K - 1) if K > 1 else 0.0
    return F.cross_entropy(logits.float().flatten(0, -2), label.long().flatten(), label_smoothing=spread)
