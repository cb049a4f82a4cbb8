"""Losses of the point networks: pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Cross entropy (..., K), (...) -> scalar in float32 or wider.

    `smoothing` is what the true class gives away to the others.

    PCT_Pytorch spreads it over the K - 1 other classes, torch over all K: hence the factor K / (K - 1). A label of
    mixed clouds is (..., K), the share of each class; each class then gives away that part of its share.
    """
    K = logits.shape[-1]
    spread = smoothing * K / (K - 1) if K > 1 else 0.0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    if label.is_floating_point():
        return F.cross_entropy(logits, label.to(logits.dtype).flatten(0, -2), label_smoothing=spread)
    return F.cross_entropy(logits, label.long().flatten(), label_smoothing=spread)


def right_share(logits: Tensor, label: Tensor) -> Tensor:
    """(..., K) and (...) -> (...): 1 where the likeliest class is the label; of mixed labels (..., K) its share."""
    predicted = logits.argmax(-1)
    return label.gather(-1, predicted.unsqueeze(-1)).squeeze(-1) if label.is_floating_point() else predicted == label
