"""The classifier of PCT and EAT: points to class logits. B batch, N points, M tokens, C channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pointcloud.encoder import PointEncoder
from pointcloud.graph_batches import Graphs, classify_graphs
from pointcloud.layers import LBR

Pooling = Literal["max", "max_mean"]


class PointClassifier(nn.Module):
    """Point clouds (B, N, 3) -> logits (B, num_classes).

    A torch_geometric `Data` or `Batch` is taken too; its clouds may differ in size in evaluation mode, see
    graph_batches.py.

    The defaults are PCT as PCT_Pytorch has it (2,876,136 parameters for 40 classes); attention="external" makes it EAT.

    Args:
        num_classes: number of classes.
        pooling: over the tokens: max (both released codes) or max and mean side by side (the paper's figure).
        head_channels: widths of the hidden layers of the head. Their biases: the first has none, as in PCT_Pytorch.
        dropout: after each hidden layer of the head.
        encoder: keywords of PointEncoder.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        pooling: Pooling = "max",
        head_channels: Sequence[int] = (512, 256),
        dropout: float = 0.5,
        **encoder: Any,
    ) -> None:
        super().__init__()
        if pooling not in ("max", "max_mean"):
            raise ValueError(f"pooling {pooling!r}: expected max or max_mean")
        self.pooling = pooling
        self.encoder = PointEncoder(**encoder)
        width = self.encoder.fuse.linear.out_features * (2 if pooling == "max_mean" else 1)
        layers: list[nn.Module] = []
        for place, channels in enumerate(head_channels):
            layers += [LBR(width, channels, bias=place > 0, slope=0.2), nn.Dropout(dropout)]
            width = channels
        self.head = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, points: Tensor | Graphs) -> Tensor:
        if not isinstance(points, Tensor):
            return classify_graphs(self, points)
        tokens = self.encoder(points)  # (B, M, C)
        pooled = tokens.amax(1)
        if self.pooling == "max_mean":
            pooled = torch.cat([pooled, tokens.mean(1)], dim=-1)
        return self.head(pooled)
