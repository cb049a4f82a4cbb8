"""The plain twins: both networks in the order of operations that PyTorch-StudioGAN publishes, to measure against.

Upsample, then convolve; convolve, then average; contiguous maps (B, C, H, W); attention by 1x1 convolutions; every
normalised weight made where it is used: the same parameters and the same function as this package's forms.

B batch, C channels, H W grid.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan import discriminator as judging
from gan.discriminator import Discriminator, DiscriminatorBlock
from gan.generator import ConditionalBatchNorm2d, Generator, GeneratorBlock
from shared_attn.feature_map import FeatureMapAttention
from shared_attn.sagan import SaganAttention


class PublishedConditionalBatchNorm2d(ConditionalBatchNorm2d):
    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        gain = (1 + self.gain(classes))[:, :, None, None]
        return self.norm(x) * gain + self.bias(classes)[:, :, None, None]


class PublishedGeneratorBlock(GeneratorBlock):
    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        h = F.relu(self.norm1(x, classes), inplace=True)
        h = convolve(self.conv1, F.interpolate(h, scale_factor=2))
        h = F.relu(self.norm2(h, classes), inplace=True)
        return convolve(self.conv2, h) + convolve(self.skip, F.interpolate(x, scale_factor=2))


class PublishedGenerator(Generator):
    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        classes = F.one_hot(labels, self.num_classes).to(z.dtype)
        x = self.linear(z).view(len(z), -1, 4, 4)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, classes)
            if number == self.attention_after:
                x = self.attention(x)
        return torch.tanh(convolve(self.conv, F.relu(self.norm(x), inplace=True)))


class PublishedDiscriminatorBlock(DiscriminatorBlock):
    def forward(self, x: Tensor) -> Tensor:
        h = x if self.first else F.relu(x)
        skip = h if self.inplace_relu else x
        h = convolve(self.conv2, F.relu(convolve(self.conv1, h), inplace=True))
        if isinstance(self.skip, nn.Identity):
            return h + skip
        if self.first:
            return F.avg_pool2d(h, 2) + convolve(self.skip, F.avg_pool2d(skip, 2))
        skip = convolve(self.skip, skip)
        return F.avg_pool2d(h, 2) + F.avg_pool2d(skip, 2) if self.downsample else h + skip


class PublishedDiscriminator(Discriminator):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images.contiguous()
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == judging.ATTENTION_AFTER_BLOCK:
                x = self.attention(x)
        h = F.relu(x).sum(dim=(2, 3))
        return self.head(h).squeeze(1) + (self.embedding(labels) * h).sum(dim=1)


class PublishedSelfAttention(FeatureMapAttention):
    def forward(self, x: Tensor) -> Tensor:
        inner = self.attention
        assert isinstance(inner, SaganAttention)
        B, _, H, W = x.shape
        query = convolve(inner.theta, x).flatten(2)  # (B, C / 8, H W)
        key = F.max_pool2d(convolve(inner.phi, x), 2).flatten(2)
        value = F.max_pool2d(convolve(inner.g, x), 2).flatten(2)
        attention = torch.bmm(query.transpose(1, 2), key).softmax(-1)  # (B, H W, H W / 4)
        y = torch.bmm(value, attention.transpose(1, 2)).view(B, -1, H, W)
        return x + self.gate * convolve(inner.output, y)


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's weight as a convolution that keeps the size; a linear map's as a 1x1 one."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def create_published_twins(generator: Generator, discriminator: Discriminator) -> tuple[Generator, Discriminator]:
    """Copies of both networks, with the same weights, that compute in the published order.

    Attention other than SAGAN's has no published order here and stays as it is.
    """
    twins = copy.deepcopy(generator), copy.deepcopy(discriminator)
    forms: dict[type[nn.Module], type[nn.Module]] = {
        ConditionalBatchNorm2d: PublishedConditionalBatchNorm2d,
        Generator: PublishedGenerator,
        Discriminator: PublishedDiscriminator,
        GeneratorBlock: PublishedGeneratorBlock,
        DiscriminatorBlock: PublishedDiscriminatorBlock,
    }
    for twin in twins:
        for module in twin.modules():
            if type(module) in forms:
                module.__class__ = forms[type(module)]
            elif isinstance(module, FeatureMapAttention) and isinstance(module.attention, SaganAttention):
                module.__class__ = PublishedSelfAttention
    return twins
