"""The generator of SAGAN (arXiv 1805.08318), with any attention of shared_attn in its place.

Legend: B batch, Z latent size, L classes, C channels, H W grid.

Layer by layer as PyTorch-StudioGAN configures SAGAN: residual blocks with class-conditional batch norm, spectral norm
everywhere, attention at a quarter to a half of the final size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.initialization import initialize, spectral_weights
from gan.layouts import choose_channels
from gan.resampling import UpsampleConv2d
from shared_attn.feature_map import FeatureMapAttention

# Channels after the first linear map and after each block, as multiples of the width (64 in the paper).
CHANNELS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
ATTENTION_AFTER_BLOCK = {32: 2, 64: 3, 128: 4}  # at 16 x 16, 32 x 32 and 64 x 64 pixels
NORM_EPS = 1e-4


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose gain and bias are linear in the class: norm(x) (1 + gain(y)) + bias(y)."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=NORM_EPS, affine=False)
        self.gain = nn.Linear(num_classes, channels, bias=False)
        self.bias = nn.Linear(num_classes, channels, bias=False)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        gain = (1 + self.gain(classes))[:, :, None, None]  # (B, C, 1, 1)
        return torch.addcmul(self.bias(classes)[:, :, None, None], self.norm(x), gain)


class GeneratorBlock(nn.Module):
    """Residual block that doubles the size: (B, C_in, H, W) -> (B, C_out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int):
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(in_channels, num_classes)
        self.conv1 = UpsampleConv2d(in_channels, out_channels)
        self.norm2 = ConditionalBatchNorm2d(out_channels, num_classes)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x, classes), inplace=True))  # (B, C_out, 2H, 2W)
        h = self.conv2(F.relu(self.norm2(h, classes), inplace=True))
        # A 1x1 map commutes with nearest-neighbour upsampling: four times cheaper at the small size.
        return h + F.interpolate(self.skip(x), scale_factor=2)


class Generator(nn.Module):
    """Images from latent vectors and classes.

    Args:
        image_size: 32, 64 or 128 pixels.
        num_classes: classes to condition on; 1 makes an unconditional generator.
        width: the paper's 64; smaller makes networks that a CPU can train.
        multiples: channels after the first linear map and after each block, in widths; none given: the paper's.
        latent_dim: size of z, drawn from a unit normal distribution.
        attention: a name of `shared_attn.list_attentions()`; "none" leaves attention out.
        attention_options: keywords of that attention.
        spectral_norm: normalise every weight matrix.
        attention_spectral_norm: the attention's too (`gan.initialization` says why not).

    Attributes:
        class_names: names of the classes, and `header`: the weights' description, set by `gan.load_generator`.

    Raises:
        ValueError: for an image size without a layout, multiples that do not fit it, or an unknown attention.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        num_classes: int = 10,
        width: int = 64,
        multiples: Sequence[int] = (),
        latent_dim: int = 128,
        attention: str = "external",
        attention_options: dict[str, Any] | None = None,
        spectral_norm: bool = True,
        attention_spectral_norm: bool = True,
    ):
        super().__init__()
        channels = choose_channels(width, multiples, CHANNELS, image_size)
        self.image_size, self.num_classes, self.latent_dim = image_size, num_classes, latent_dim
        self.attention_after = ATTENTION_AFTER_BLOCK[image_size]
        self.class_names = [str(number) for number in range(num_classes)]
        self.header: dict[str, Any] = {}

        self.linear = nn.Linear(latent_dim, channels[0] * 4 * 4)
        self.blocks = nn.ModuleList(
            GeneratorBlock(c_in, c_out, num_classes) for c_in, c_out in zip(channels[:-1], channels[1:], strict=True)
        )
        self.attention: nn.Module = nn.Identity()
        if attention != "none":
            self.attention = FeatureMapAttention(attention, channels[self.attention_after], **(attention_options or {}))
        self.norm = nn.BatchNorm2d(channels[-1], eps=NORM_EPS)
        self.conv = nn.Conv2d(channels[-1], 3, kernel_size=3, padding=1)

        initialize(self, spectral_norm=spectral_norm, attention_spectral_norm=attention_spectral_norm)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Draw images.

        Args:
            z: (B, Z) latent vectors.
            labels: (B,) class numbers, or (B, L) weights of the classes (rows that sum to 1 blend classes).

        Returns:
            (B, 3, image_size, image_size) float32 in [-1, 1].
        """
        classes = labels if labels.is_floating_point() else F.one_hot(labels, self.num_classes).to(z.dtype)  # (B, L)
        with spectral_weights(self):
            x = self.linear(z).view(len(z), -1, 4, 4)  # (B, C, 4, 4)
            x = x.contiguous(memory_format=torch.channels_last)
            for number, block in enumerate(self.blocks, start=1):
                x = block(x, classes)  # (B, C, 2H, 2W)
                if number == self.attention_after:
                    x = self.attention(x)
            x = self.conv(F.relu(self.norm(x), inplace=True))  # (B, 3, H, W)
        return torch.tanh(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
