"""Resampling folded into the convolution beside it, exactly.

Legend: B batch, I input channels, O output channels, H W grid.

Nearest-neighbour upsampling followed by a 3x3 convolution reads every input pixel through sums of neighbouring taps,
and so does a 3x3 convolution followed by averaging 2x2 pixels. Summing the taps first turns either pair into one
4x4 convolution of stride 2: 4 multiply-adds an output pixel instead of 9, and no image at the larger size that is
only read again. The 3x3 weight stays the parameter; gradients reach it through the sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fold_kernel(weight: Tensor, *, divisor: int = 1) -> Tensor:
    """Sum a 3x3 kernel (O, I, 3, 3) over the four shifts of a 2x2 window: (O, I, 4, 4), channels_last, over divisor."""
    # A window's sum at every shift is a pooling; channels_last it takes a tenth of the time of sums of slices.
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.avg_pool2d(weight, 2, stride=1, padding=1, divisor_override=divisor)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest x2, then a 3x3 convolution with padding 1: (B, I, H, W) -> (B, O, 2H, 2W)."""
    kernel = fold_kernel(weight.transpose(0, 1).flip(2, 3))  # (I, O, 4, 4), as a transposed convolution reads it
    if bias is None or not (torch.is_grad_enabled() and bias.requires_grad):
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    # On a CPU the bias's gradient inside a transposed convolution costs half of its backward again; a sum, nothing.
    y = F.conv_transpose2d(x, kernel, stride=2, padding=1)
    return y.add_(bias.to(y.dtype)[:, None, None])


def conv_downsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with padding 1, then the average of 2x2 pixels: (B, I, 2H, 2W) -> (B, O, H, W)."""
    return F.conv2d(x, fold_kernel(weight, divisor=4), bias, stride=2, padding=1)


class UpsampleConv2d(nn.Conv2d):
    """A 3x3 convolution that reads its input at twice the size (nearest neighbour)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(x, self.weight, self.bias)


class DownsampleConv2d(nn.Conv2d):
    """A 3x3 convolution whose output is averaged over 2x2 pixels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv_downsample(x, self.weight, self.bias)
