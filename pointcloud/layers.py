"""What the point networks are built of: linear + batch norm + activation, on tokens.

B batch, N tokens, C channels; tokens are (B, N, C) everywhere.

Initialisation, here and in every model of this package: PyTorch's default for each linear map (uniform, standard
deviation 1 / sqrt(3 fan_in)), as in the original code; a batch norm behind the map makes its scale immaterial.
Attention layers have their own, from shared_attn.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.products import LinearMap
from shared_attn.runtime.processes import WHOLE, Share
from shared_attn.token_norm import normalise_tokens


class LBR(nn.Module):
    """Linear map, batch norm, activation: (B, N, in) or (B, in) -> the same with `out` channels.

    `slope` is the activation's slope below zero: 0 is ReLU, 0.2 the LeakyReLU of the original's wide layers.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False, slope: float = 0.0) -> None:
        super().__init__()
        self.linear = LinearMap(in_channels, out_channels, bias=bias)
        self.norm = nn.BatchNorm1d(out_channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x))

    def activate(self, x: Tensor) -> Tensor:
        """Batch norm and activation of what the linear map (or a split of it) gave."""
        x = self.norm(x) if x.ndim == 2 else normalise_tokens(self.norm, x)
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)


def stack_lbr(channels: list[int]) -> nn.Sequential:
    """LBRs one behind the other: channels [3, 64, 64] make 3 -> 64 -> 64; one number alone makes the identity."""
    return nn.Sequential(*(LBR(a, b) for a, b in zip(channels[:-1], channels[1:], strict=True)))


class SharedDropout(nn.Dropout):
    """Dropout of a batch that several processes share: each draws for the rows of all, and keeps those of its own."""

    def __init__(self, p: float, share: Share) -> None:
        super().__init__(p)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = 1 - self.p

        def draw(shape: tuple[int, ...]) -> Tensor:
            return x.new_empty(shape).bernoulli_(kept).div_(kept)

        return x * self.share.draw(draw, len(x), *x.shape[1:])


def share_draws(network: nn.Module, share: Share) -> None:
    """Lets the random draws within a network be those of the batch of all processes, in place."""
    modules: list[Any] = list(network.modules())
    for module in modules:
        if hasattr(module, "share"):
            module.share = share
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, SharedDropout(child.p, share).train(child.training))


def drop_path(before: Tensor, after: Tensor, rate: float, share: Share = WHOLE) -> Tensor:
    """Stochastic depth (arXiv 1603.09382) of a residual layer in training: `after` = `before` + branch, both (B, N, C).

    The branch of each cloud is left out with probability `rate`, and divided by 1 - rate where it stays, so that its
    expectation is that of evaluation, where nothing is dropped. `share`: which clouds of the batch these are.
    """
    stays = share.draw(torch.rand, len(before), 1, 1, device=before.device) >= rate
    return before + (after - before) * (stays / (1 - rate)).to(after.dtype)
