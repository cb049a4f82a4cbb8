"""The part segmenter of PCT and EAT: points to part logits. B batch, N points, C channels, G global channels."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcloud.encoder import PointEncoder
from pointcloud.graph_batches import Graphs, segment_graphs
from pointcloud.layers import LBR
from pointcloud.published_widths import ENCODERS


class PartSegmenter(nn.Module):
    """Point clouds (B, N, 3) and their categories (B,) -> part logits (B, N, num_parts).

    Each point's feature is concatenated with the maximum and mean over the cloud and the embedded category; the
    repeated global part goes through its share of the first map once a cloud instead of once a point (the same
    function).

    A torch_geometric `Data` or `Batch` is taken too, with its `category` where none is given, and gives a row for each
    of its points, (T, num_parts); its clouds may differ in size in evaluation mode, see graph_batches.py.

    Args:
        num_parts: parts of all categories together.
        num_categories: shape categories, given as one-hot; 0: the category is not an input.
        neighbour_embedding: "none" (the released code) or "sg" (the paper's full model, both at all N points).
        head_channels: widths of the two hidden layers.
        dropout: after the first of them.
        encoder: keywords of PointEncoder that replace those of ENCODERS[neighbour_embedding].
    """

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,
        *,
        neighbour_embedding: Literal["none", "sg"] = "none",
        head_channels: tuple[int, int] = (512, 256),
        dropout: float = 0.5,
        **encoder: Any,
    ) -> None:
        super().__init__()
        if neighbour_embedding not in ENCODERS:
            raise ValueError(f"neighbour_embedding {neighbour_embedding!r}: expected {' or '.join(ENCODERS)}")
        self.num_categories = num_categories
        self.encoder = PointEncoder(**{**ENCODERS[neighbour_embedding], **encoder})
        width = self.encoder.fuse.linear.out_features
        self.category = LBR(num_categories, 64, slope=0.2) if num_categories else None
        self.first = LBR(3 * width + (64 if num_categories else 0), head_channels[0], bias=True)
        self.dropout = nn.Dropout(dropout)
        self.second = LBR(*head_channels, bias=True)
        self.logits = nn.Linear(head_channels[1], num_parts)

    def forward(self, points: Tensor | Graphs, category: Tensor | None = None) -> Tensor:
        if not isinstance(points, Tensor):
            if category is None and self.category is not None:
                category = getattr(points, "category", None)
            return segment_graphs(self, points, category)
        if (category is None) != (self.category is None):
            raise TypeError("PartSegmenter: categories are given exactly when the model was made with num_categories")
        x = self.encoder(points)  # (B, N, C)
        overall = [x.amax(1), x.mean(1)]
        if self.category is not None and category is not None:
            overall.append(self.category(F.one_hot(category.long(), self.num_categories).to(x.dtype)))
        overall_features = torch.cat(overall, dim=-1)  # (B, G)
        own, shared = self.first.linear.weight.split([x.shape[-1], overall_features.shape[-1]], dim=1)
        x = F.linear(x, own) + F.linear(overall_features, shared, self.first.linear.bias).unsqueeze(1)
        return self.logits(self.second(self.dropout(self.first.activate(x))))
