"""The plain twin: the network as PCT_Pytorch computes it, to test and to measure this package's forms against.

Channels first, 1x1 convolutions, the neighbour embedding pair by pair, the attention map in three steps, a segmenter's
global channels repeated at every point: the same parameters and the same function, in the published order of
operations. In float32 that order matters: between one thread and two the published network's own logits move by 1.4e-4,
its attention layers amplify rounding a hundred times.

B batch, N points, M centres, K neighbours, C channels.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcloud.geometry import group
from pointcloud.graph_batches import Graphs
from pointcloud.layers import LBR
from pointcloud.neighbours import NeighbourEmbedding
from pointcloud.segmenter import PartSegmenter
from shared_attn.offset import DoubleNormalisedAttention, OffsetBlock

Model = TypeVar("Model", bound=nn.Module)


class PublishedLBR(LBR):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return super().forward(x)
        x = self.norm(convolve(self.linear, x.transpose(1, 2).contiguous()))  # (B, C, N)
        return F.leaky_relu(x, self.slope).transpose(1, 2)


class PublishedNeighbourEmbedding(NeighbourEmbedding):
    def forward(self, features: Tensor, centres: Tensor, neighbours: Tensor) -> Tensor:
        B, M, K = neighbours.shape
        own = group(features, centres).unsqueeze(2)  # (B, M, 1, C)
        pairs = torch.cat([group(features, neighbours) - own, own.expand(-1, -1, K, -1)], dim=-1)  # (B, M, K, 2C)
        x = pairs.permute(0, 1, 3, 2).reshape(B * M, -1, K)
        for linear, norm in ((self.first, self.first_norm), (self.second, self.second_norm)):
            x = F.relu(norm(convolve(linear, x)))
        return x.amax(-1).view(B, M, -1)


class PublishedOffsetBlock(OffsetBlock):
    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, _mask: Tensor | None, /) -> Tensor:
        assert isinstance(self.attention, DoubleNormalisedAttention)
        x = x.transpose(1, 2).contiguous()  # (B, C, N)
        query, value = convolve(self.attention.query_key, x), convolve(self.attention.value, x)
        attention = torch.softmax(torch.bmm(query.transpose(1, 2), query), dim=-1)  # (B, N, N)
        r = torch.bmm(value, attention / (1e-9 + attention.sum(dim=1, keepdim=True)))
        hidden = convolve(self.transform, x - r if self.form == "offset" else r)
        return (x + F.relu(self.norm(hidden))).transpose(1, 2)


class PublishedSegmenter(PartSegmenter):
    def forward(self, points: Tensor | Graphs, category: Tensor | None = None) -> Tensor:
        assert isinstance(points, Tensor)
        x = self.encoder(points)  # (B, N, C)
        overall = [x.amax(1), x.mean(1)]
        if self.category is not None and category is not None:
            overall.append(self.category(F.one_hot(category.long(), self.num_categories).to(x.dtype)))
        repeated = torch.cat(overall, dim=-1).unsqueeze(1).expand(-1, x.shape[1], -1)
        x = self.first(torch.cat([x, repeated], dim=-1))  # (B, N, D)
        return self.logits(self.second(self.dropout(x)))


def convolve(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear map as the 1x1 convolution (B, C, N) -> (B, D, N) it was published as."""
    return F.conv1d(x, linear.weight.unsqueeze(-1), linear.bias)


def create_published_twin(model: Model) -> Model:
    """A copy of a model, with the same weights, that computes in the published order.

    Attention other than PCT's own has no published order here and stays as it is.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, PartSegmenter):
            module.__class__ = PublishedSegmenter
        elif isinstance(module, LBR):
            module.__class__ = PublishedLBR
        elif isinstance(module, NeighbourEmbedding):
            module.__class__ = PublishedNeighbourEmbedding
        elif isinstance(module, OffsetBlock) and isinstance(module.attention, DoubleNormalisedAttention):
            module.__class__ = PublishedOffsetBlock
    return twin
