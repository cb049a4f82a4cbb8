"""The generator that is kept: an exponential moving average of the trained one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def warm_decay(decay: float, step: int) -> float:
    """Decay at a step (from 0): near 0 at first, so that the random start is forgotten, `decay` later."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move each parameter: average = decay * average + (1 - decay) * network.

    Buffers are copied. Spectral norm's vectors must not be averaged (a mean of unit vectors is shorter than one, so
    the estimated norm would shrink and the weights explode); batch norm's statistics are estimated anew
    (`estimate_statistics`) before the average is used.
    """
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


@torch.no_grad()
def estimate_statistics(generator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set batch norm's running statistics to their mean over batches of (z, labels); leaves `generator` in eval mode.

    Only batch norm runs in training mode meanwhile: spectral norm makes no power iteration.
    """
    generator.eval()
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a cumulative mean
        norm.reset_running_stats()
    for z, labels in batches:
        generator(z, labels)
    for norm, value in zip(norms, momentum, strict=True):
        norm.eval()
        norm.momentum = value
