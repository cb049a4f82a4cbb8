"""The projection discriminator of SAGAN (arXiv 1805.08318, 1802.05637), with any attention of shared_attn.

Legend: B batch, C channels, H W grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.initialization import initialize, spectral_weights
from gan.layouts import choose_channels, choose_halvings
from gan.resampling import DownsampleConv2d
from shared_attn.feature_map import FeatureMapAttention
from shared_attn.functional import full_precision

# Channels after each block, as multiples of the width (64 in the paper), and pixels of the last map's side.
CHANNELS = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
GRID = {32: 8, 64: 4, 128: 4}
DEVIATION_EPS = 1e-8  # under the root, whose slope is infinite at zero
DEVIATION_STD = 0.3  # of the weights of a new MinibatchDeviation
ATTENTION_AFTER_BLOCK = 1  # at 16 x 16, 32 x 32 and 64 x 64 pixels


class DiscriminatorBlock(nn.Module):
    """Residual block: (B, C_in, H, W) -> (B, C_out, H, W), or half the size.

    Args:
        in_channels, out_channels: channels.
        downsample: average 2x2 pixels at the end.
        first: the block that reads the image; it has no activation before its first convolution.
        inplace_relu: let the skip see relu(x), as implementations do whose in-place ReLU overwrites the block's
            input (PyTorch-StudioGAN, mimicry). Training without it is better; with it, their numbers compare.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, downsample: bool, first: bool = False, inplace_relu: bool = False
    ):
        super().__init__()
        self.downsample, self.first, self.inplace_relu = downsample, first, inplace_relu
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv2 = (
            DownsampleConv2d(out_channels, out_channels)
            if downsample
            else nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        )
        self.skip: nn.Module = nn.Identity()
        if downsample or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.first else F.relu(x)
        skip = h if self.inplace_relu else x
        h = self.conv2(F.relu(self.conv1(h), inplace=True))  # (B, C_out, H or H/2, W or W/2)
        if self.downsample:
            skip = F.avg_pool2d(skip, 2)  # commutes with the 1x1 map, which is cheaper at the small size
        return h + self.skip(skip)


class MinibatchDeviation(nn.Module):
    """How much the images of a group differ (arXiv 1710.10196, section 3): a generator that repeats itself shows.

    The paper appends the standard deviation over the group, averaged over channels and pixels, as one more channel, of
    which the next map makes what it likes. Here it is added to each channel with a weight of its own, so that the
    channels stay as many.

    Args:
        channels: C.
        group_size: images of a group: neighbours in the batch; in a smaller batch all of them.
    """

    def __init__(self, channels: int, group_size: int):
        super().__init__()
        self.group_size = group_size
        self.weight = nn.Parameter(torch.empty(channels).normal_(std=DEVIATION_STD))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), B a multiple of the group's size, in the same shape."""
        size = min(self.group_size, len(x))
        if len(x) % size:
            raise ValueError(f"{len(x)} images: expected a multiple of the groups' {size}")
        groups = x.float().unflatten(0, (-1, size))  # (groups, images, C, H, W)
        centred = groups - groups.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1)  # torch.var takes several times as long along a dimension like this one
        deviation = (variance + DEVIATION_EPS).sqrt().mean(dim=(1, 2, 3))  # (groups,)
        deviation = deviation.repeat_interleave(size)[:, None, None, None]  # (B, 1, 1, 1)
        return x + (deviation * self.weight[:, None, None]).to(x.dtype)


class Discriminator(nn.Module):
    """A logit for each image, given its class: psi(h) + <embedding(class), h>, h summed over the pixels.

    Args: as `gan.generator.Generator` (`multiples` after each block), `inplace_relu` as in `DiscriminatorBlock`, and
        group_size: images among which the last block sees how much they differ (`MinibatchDeviation`); 0 for none.
        grid: pixels of the last map's side; 0 for the paper's. The first blocks halve the size until it is reached.

    Raises:
        ValueError: for an image size without a layout, multiples or a grid that do not fit it, or an unknown attention.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        num_classes: int = 10,
        width: int = 64,
        multiples: Sequence[int] = (),
        attention: str = "external",
        attention_options: dict[str, Any] | None = None,
        spectral_norm: bool = True,
        attention_spectral_norm: bool = True,
        inplace_relu: bool = False,
        group_size: int = 0,
        grid: int = 0,
    ):
        super().__init__()
        channels = [3, *choose_channels(width, multiples, CHANNELS, image_size)]
        halvings = choose_halvings(grid, GRID, image_size, stages=len(channels) - 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(c_in, c_out, downsample=number < halvings, first=number == 0, inplace_relu=inplace_relu)
            for number, (c_in, c_out) in enumerate(pairwise(channels))
        )
        self.attention: nn.Module = nn.Identity()
        if attention != "none":
            self.attention = FeatureMapAttention(
                attention, channels[ATTENTION_AFTER_BLOCK], **(attention_options or {})
            )
        self.deviation = MinibatchDeviation(channels[-2], group_size) if group_size else nn.Identity()
        self.head = nn.Linear(channels[-1], 1)
        self.embedding = nn.Embedding(num_classes, channels[-1])

        initialize(self, spectral_norm=spectral_norm, attention_spectral_norm=attention_spectral_norm)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge images (B, 3, H, W) in [-1, 1] of classes (B,): logits (B,), positive for real."""
        with spectral_weights(self):
            h = self._describe(images)
            with full_precision(h):
                return self.head(h).squeeze(1) + (self.embedding(labels) * h).sum(dim=1)  # (B,)

    def classify(self, images: Tensor) -> Tensor:
        """The class's share of the logit, for every class: (B, L)."""
        with spectral_weights(self):
            h = self._describe(images)
            with full_precision(h):
                return h @ self.embedding.weight.T

    def _describe(self, images: Tensor) -> Tensor:
        """h, (B, C)."""
        x = images.contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self.blocks, start=1):
            if number == len(self.blocks):
                x = self.deviation(x)
            x = block(x)  # (B, C, H, W), H halved by most blocks
            if number == ATTENTION_AFTER_BLOCK:
                x = self.attention(x)
        return F.relu(x).sum(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
