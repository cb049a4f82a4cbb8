"""Adversarial losses as pure functions of the discriminator's logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv 1705.02894): mean max(0, 1 - real) + mean max(0, 1 + fake)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """The generator's side of the hinge loss: -mean fake."""
    return -fake_logits.mean()
