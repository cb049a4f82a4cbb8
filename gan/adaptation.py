"""What a training carries beside its weights: augmentation's strength, and the running levels of the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_attn.runtime.processes import average_over_processes, count_processes

LEVEL_DECAY = 0.99  # of the logits' running means (LeCam, arXiv 2104.03310)


class Adaptation(nn.Module):
    """Scalars that follow the discriminator's logits from step to step, on its device; nothing waits for them.

    Args:
        probability: augmentation's probability at the start.
        target: mean sign of the real logits that the probability is steered to (0.6 in ADA, arXiv 2006.06676, section
            3.1); 0 leaves the probability as it is.
        images: real images in which the probability could go from 0 to 1.
    """

    probability: Tensor
    real_level: Tensor
    fake_level: Tensor

    def __init__(self, *, probability: float, target: float, images: int):
        super().__init__()
        self.target, self.images = target, images
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.register_buffer("real_level", torch.tensor(0.0))
        self.register_buffer("fake_level", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor, margins: Tensor) -> None:
        """Take in the logits (B,) of a discriminator step; those of all processes count.

        A discriminator that is sure of the training images (a high mean sign) has begun to know them by heart: more
        augmentation; and less otherwise.

        Args:
            margins: (B,), above zero for each training image that was recognised: the real logits, or where the loss is
                relativistic their distance from the generated ones.
        """
        means = [real_logits.mean(), fake_logits.mean()]
        if self.target:
            means.append(margins.sign().mean())
        real_level, fake_level, *signs = average_over_processes(*means)
        for sign in signs:
            shown = len(real_logits) * count_processes()
            self.probability.add_((sign - self.target).sign() * (shown / self.images)).clamp_(0, 1)
        self.real_level.lerp_(real_level.to(self.real_level), 1 - LEVEL_DECAY)
        self.fake_level.lerp_(fake_level.to(self.fake_level), 1 - LEVEL_DECAY)
