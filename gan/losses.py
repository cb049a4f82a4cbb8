"""Adversarial losses and regularisations as pure functions of the discriminator's logits.

Legend: B batch. Logits are (B,), positive for real.

A loss is a pair of functions: what the discriminator minimises, of (real, generated) logits, and what the generator
minimises, of (generated, real) ones. Only the relativistic loss needs the latter's real logits (`NEEDS_REAL`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv 1705.02894): mean max(0, 1 - real) + mean max(0, 1 + fake)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator(fake_logits: Tensor, _real_logits: Tensor | None = None) -> Tensor:
    """The generator's side of the hinge loss: -mean fake."""
    return -fake_logits.mean()


def logistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross entropy of the discriminator (arXiv 1406.2661): mean softplus(-real) + mean softplus(fake)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def logistic_generator(fake_logits: Tensor, _real_logits: Tensor | None = None) -> Tensor:
    """The non-saturating side of the generator (arXiv 1406.2661, section 3): mean softplus(-fake)."""
    return F.softplus(-fake_logits).mean()


def relativistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of pairs (arXiv 1807.00734; with R1 and R2 in R3GAN, 2501.05441): mean softplus(fake - real)."""
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_generator(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """The generator's side of the pairs: mean softplus(real - fake)."""
    return F.softplus(real_logits - fake_logits).mean()


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "hinge": (hinge_discriminator, hinge_generator),
    "logistic": (logistic_discriminator, logistic_generator),
    "relativistic": (relativistic_discriminator, relativistic_generator),
}
NEEDS_REAL = ("relativistic",)


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the mean squared length of the gradient of each logit by its image (arXiv 1801.04406, eq. 9).

    On real images it is R1, on generated ones R2. Differentiable, so that the discriminator can be trained with it.

    Args:
        logits: (B,), computed from `images`.
        images: (B, 3, H, W), which require gradients.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.float().square().sum(dim=(1, 2, 3)).mean() / 2


def lecam(real_logits: Tensor, fake_logits: Tensor, real_level: Tensor, fake_level: Tensor) -> Tensor:
    """LeCam regularisation (arXiv 2104.03310, eq. 6): each side stays near the other's running level.

    Args:
        real_level, fake_level: running means of the logits of either side, scalars.
    """
    return F.relu(real_logits - fake_level).square().mean() + F.relu(real_level - fake_logits).square().mean()


def consistency(logits: Tensor, changed_logits: Tensor) -> Tensor:
    """Balanced consistency (arXiv 2002.04724): a changed image should be judged as before."""
    return (logits - changed_logits).square().mean()
