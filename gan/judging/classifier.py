"""A small residual classifier whose features judge generated images.

Legend: B batch, H W pixels, C channels, D feature size, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS = (16, 48, 96, 192)


class ConvNorm(nn.Sequential):
    """Convolution 3x3 without bias, batch norm, ReLU: (B, C, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Stage(nn.Module):
    """Half the resolution, then one residual convolution (He et al., arXiv 1512.03385)."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.shrink = ConvNorm(channels, out, stride=2)
        self.refine = ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(x)  # (B, out, H / 2, W / 2)
        return x + self.refine(x)


class Classifier(nn.Module):
    """A stem at full resolution, three stages, an average over all pixels, a linear map to the classes.

    Args:
        num_classes: L.
        widths: channels of the stem and of each stage; the last is the feature size D.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.num_classes, self.dim = num_classes, widths[-1]
        self.stem = ConvNorm(3, widths[0])
        self.stages = nn.Sequential(*(Stage(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)))
        self.head = nn.Linear(self.dim, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> features (B, D), which are not negative, and logits (B, L)."""
        x = self.stages(self.stem(images))  # (B, D, H / 8, W / 8)
        features = x.float().mean(dim=(2, 3))
        return features, self.head(features)


@torch.no_grad()
def initialise(classifier: Classifier) -> None:
    """Draw the weights from torch's global generator: He's normal distribution (fan out), a head of zeros."""
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.head.weight)
    nn.init.zeros_(classifier.head.bias)
