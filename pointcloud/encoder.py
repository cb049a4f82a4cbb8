"""The Point Cloud Transformer's body (PCT, arXiv 2012.09688), with any attention: EAT is PCT with attention="external".

B batch, N points, M tokens (centres of the last neighbour embedding, or all points), K neighbours, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.geometry import farthest_points, group, k_nearest, morton_order
from pointcloud.layers import LBR, drop_path, stack_lbr
from pointcloud.neighbours import NeighbourEmbedding
from shared_attn.offset import OffsetForm, create_offset_layer
from shared_attn.products import use_products
from shared_attn.runtime.processes import WHOLE


class PointEncoder(nn.Module):
    """Points (B, N, 3) -> token features (B, M, fuse_channels).

    LBRs a point; neighbour embeddings, each on the farthest points of the one before; LBRs ("stem"); attention layers
    in series; all their outputs and the last neighbour embedding's concatenated and fused by an LBR with slope 0.2.

    Args:
        attention: a name of shared_attn; "offset" is PCT, "external" is EAT.
        form: the residual layer around it: offset x + LBR(x - r), offset_query (external attention with a query map),
            plain x + LBR(r).
        attention_options: further keywords of that attention, for example {"memory_size": 64}.
        num_layers: attention layers.
        embed_channels: widths of the LBRs a point.
        neighbour_channels: width of each neighbour embedding; none of them is NPCT / SPCT.
        num_centres: farthest points each of them keeps, not increasing; none: all points (the part segmenter).
        num_neighbours: neighbours of each centre, itself among them.
        stem_layers: LBRs between the embeddings and the attention: 2 in PCT_Pytorch, 1 in the official code.
        position_embedding: add a linear map of each token's xyz to every attention layer's input (official code).
        fuse_channels: width of the output.
        drop_path: probability, in training, that a cloud skips the last attention layer; it grows linearly over the
            layers (stochastic depth, arXiv 1603.09382).
    """

    def __init__(
        self,
        *,
        attention: str = "offset",
        form: OffsetForm = "offset",
        attention_options: Mapping[str, Any] | None = None,
        num_layers: int = 4,
        embed_channels: Sequence[int] = (64, 64),
        neighbour_channels: Sequence[int] = (128, 256),
        num_centres: Sequence[int] = (512, 256),
        num_neighbours: int = 32,
        stem_layers: int = 2,
        position_embedding: bool = False,
        fuse_channels: int = 1024,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if num_centres and len(num_centres) != len(neighbour_channels):
            raise ValueError(
                f"num_centres {list(num_centres)}: expected one number for each of neighbour_channels "
                f"{list(neighbour_channels)}, or none"
            )
        if list(num_centres) != sorted(num_centres, reverse=True) or min(num_centres, default=1) < 1:
            raise ValueError(f"num_centres {list(num_centres)}: expected positive numbers that do not increase")
        if num_layers < 1 or num_neighbours < 1:
            raise ValueError(f"num_layers {num_layers}, num_neighbours {num_neighbours}: expected at least 1 each")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path}: expected at least 0 and below 1")
        self.drop_path, self.share = drop_path, WHOLE
        self.num_centres, self.num_neighbours = tuple(num_centres), num_neighbours
        self.embed = stack_lbr([3, *embed_channels])
        widths = [embed_channels[-1], *neighbour_channels]
        self.neighbours = nn.ModuleList(NeighbourEmbedding(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        dim = widths[-1]
        self.stem = stack_lbr([dim] * (stem_layers + 1))
        self.position = nn.Linear(3, dim) if position_embedding else None
        options = dict(attention_options or {})
        self.attention = nn.ModuleList(create_offset_layer(attention, dim, form, **options) for _ in range(num_layers))
        use_products(self.attention)
        fused = dim * (num_layers + bool(neighbour_channels))
        self.fuse = LBR(fused, fuse_channels, slope=0.2)
        self.serialises = any(uses_layout(module) for module in self.attention.modules())

    def forward(self, points: Tensor) -> Tensor:
        xyz, features = self._tokens(points)  # (B, M, 3), (B, M, C)
        order = morton_order(xyz) if self.serialises else None
        if order is not None:
            xyz, features = group(xyz, order), group(features, order)
        position = None if self.position is None else self.position(xyz)
        x, outputs = self.stem(features), []
        for depth, layer in enumerate(self.attention, start=1):
            before = x if position is None else x + position
            x = layer(before, grid=(x.shape[1],))
            if self.training and self.drop_path:
                x = drop_path(before, x, self.drop_path * depth / len(self.attention), self.share)
            outputs.append(x)
        if self.neighbours:
            outputs.append(features)
        fused = self.fuse(torch.cat(outputs, dim=-1))  # (B, M, fuse_channels)
        return fused if order is None else group(fused, order.argsort(1))

    def token_indices(self, points: Tensor) -> Tensor:
        """Which of the points (B, N, 3) the attention layers' tokens stand at, in the layers' order: (B, M) indices."""
        B, N, _ = points.shape
        if self.num_centres:
            indices = farthest_points(points, self.num_centres[-1])
        else:
            indices = torch.arange(N, device=points.device).expand(B, N)
        if not self.serialises:
            return indices
        return indices.gather(1, morton_order(group(points, indices)))

    def _tokens(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and features of the tokens. One farthest-point run serves every level: its prefixes nest."""
        B, N, _ = points.shape
        x = self.embed(points)
        if not self.neighbours:
            return points, x
        counts = self.num_centres or (N,) * len(self.neighbours)
        everyone = torch.arange(N, device=x.device).expand(B, N)
        order = farthest_points(points, counts[0]) if self.num_centres else everyone
        nearest: Tensor | None = None
        for embedding, count in zip(self.neighbours, counts, strict=True):
            centres = order[:, :count]
            if nearest is None or self.num_centres:  # where all points stay, so do their neighbours
                xyz = group(points, centres)  # (B, M, 3)
                nearest = k_nearest(points, xyz, self.num_neighbours)
            x = embedding(x, centres, nearest)
            points, order = xyz, torch.arange(count, device=x.device).expand(B, count)
        return points, x


def uses_layout(layer: nn.Module) -> bool:
    """Whether an attention looks at where its tokens stand, so that points must be put in an order first."""
    return bool(getattr(layer, "needs_grid", False))
