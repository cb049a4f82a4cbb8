"""PCT's neighbour embedding ("sampling and grouping"), with its first linear map split.

B batch, N points, M centres, K neighbours, P = B M K pairs, C channels in, D channels out.

The published form gathers [f_j - f_i ; f_i] for every pair of a centre i and a neighbour j, and applies two LBRs and a
maximum over the neighbours. The first map W = [A | E] is linear, so W [f_j - f_i ; f_i] = A f_j + (E - A) f_i: computed
once a point instead of once a pair, then gathered and added. The batch norm behind it is an affine map of that sum, so
it is applied once a point too; its statistics over the pairs follow from three sums over points. Same function, same
gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcloud.geometry import flat_index
from shared_attn.functional import full_precision


class PairNorm(nn.BatchNorm1d):
    """Batch norm of all pair sums near[j] + centre[i], as one affine map, without forming the pairs."""

    def pair_affine(self, near: Tensor, centre: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (D,): batch norm of a pair sum s is scale * s + shift.

        Args:
            near: (B N, D) the neighbours' part, of all points.
            centre: (B M, D) the centres' part.
            pairs: (B M, K) rows of `near`, the neighbours of each centre.
        """
        assert self.running_mean is not None and self.running_var is not None
        if not self.training:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance = pair_statistics(near, centre, pairs)
            with torch.no_grad():
                count = pairs.numel()
                momentum = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - scale * mean


def pair_statistics(near: Tensor, centre: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over all pairs of near[j] + centre[i], in float32 or wider.

    With both parts centred, var = sum_j n_j u_j^2 / P + sum_i w_i^2 / (B M) + 2 sum_i w_i . (sum_j of i u_j) / P, n_j
    being how often j is a neighbour.
    """
    with full_precision(near):
        wide = torch.promote_types(near.dtype, torch.float32)
        near, centre = near.to(wide), centre.to(wide)
        count = torch.zeros_like(near[:, 0]).index_add_(0, pairs.flatten(), near.new_ones(pairs.numel()))
        near_mean, centre_mean = count @ near / pairs.numel(), centre.mean(0)
        near, centre = near - near_mean, centre - centre_mean
        summed = F.embedding_bag(pairs, near, mode="sum")  # (B M, D): each centre's neighbours
        variance = (count @ near.square() + (2 * summed * centre).sum(0)) / pairs.numel() + centre.square().mean(0)
        return near_mean + centre_mean, variance.clamp_min(0)


class NeighbourEmbedding(nn.Module):
    """LBR 2C -> D and D -> D on every pair [f_j - f_i ; f_i], then the maximum over neighbours (PCT, section 3.4)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.first_norm = PairNorm(out_channels)
        self.second = nn.Linear(out_channels, out_channels, bias=False)
        self.second_norm = nn.BatchNorm1d(out_channels)

    def forward(self, features: Tensor, centres: Tensor, neighbours: Tensor) -> Tensor:
        """(B, N, C) features -> (B, M, D), for indices of centres (B, M) and of their neighbours (B, M, K)."""
        B, N, C = features.shape
        M, K = neighbours.shape[1:]
        points = features.reshape(B * N, C)
        pairs = flat_index(neighbours, N).view(B * M, K)
        difference, own = self.first.weight.chunk(2, dim=1)  # A and E, (D, C) each
        near = F.linear(points, difference)  # (B N, D)
        centre = F.linear(points.index_select(0, flat_index(centres, N)), own - difference)  # (B M, D)
        scale, shift = self.first_norm.pair_affine(near, centre, pairs)
        near, centre = (near * scale).to(near.dtype), (centre * scale + shift).to(near.dtype)
        x = near.index_select(0, pairs.flatten()).view(B, M, K, -1) + centre.view(B, M, 1, -1)  # (B, M, K, D)
        return self._second(x.relu_())

    def _second(self, x: Tensor) -> Tensor:
        """Second LBR and maximum, (B, M, K, D) -> (B, M, D); ReLU is monotone, so it comes after the maximum."""
        if self.training:
            x = self.second(x)
            return F.relu(max_over_neighbours(self.second_norm(x.flatten(0, 2)).view_as(x)))
        norm = self.second_norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # folds into the map, negative ones included
        shift = norm.bias - scale * norm.running_mean
        x = F.linear(x, scale.unsqueeze(1) * self.second.weight)
        return F.relu(max_over_neighbours(x) + shift)


def max_over_neighbours(x: Tensor) -> Tensor:
    """(B, M, K, D) -> (B, M, D), as channels-last pooling: on a CPU its gradient is several times faster than max's."""
    B, M, K, D = x.shape
    return F.max_pool2d(x.permute(0, 3, 1, 2), (1, K)).permute(0, 2, 3, 1).reshape(B, M, D)
