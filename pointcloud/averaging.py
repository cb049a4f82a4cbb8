"""Exponential moving average of a network's weights, and batch-norm statistics estimated anew for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightAverage:
    """The weights a run ends with: an average whose memory is given in clouds shown, not in steps.

    Weights of `half_life` clouds ago count half. Early in the run the half-life is at most a twentieth of what was
    shown, so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, model: nn.Module, shown: int, count: int) -> None:
        """Takes in the weights after a step of `count` clouds, `shown` of them in all."""
        half_life = min(self.half_life, shown / 20)
        keep = 0.5 ** (count / half_life) if half_life > 0 else 0.0
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - keep)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
            else:
                mine.copy_(theirs)


@torch.no_grad()
def estimate_norms(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Sets the batch norms' running statistics to their mean over the batches (arguments of the model), for the
    weights as they are now."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    modes, momenta = [norm.training for norm in norms], [norm.momentum for norm in norms]
    for count, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.train()
            norm.momentum = 1 / count  # a running mean of all batches so far
        model(*batch)
    for norm, mode, momentum in zip(norms, modes, momenta, strict=True):
        norm.train(mode)
        norm.momentum = momentum
