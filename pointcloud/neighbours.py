"""PCT's neighbour embedding ("sampling and grouping"), with its first linear map split.

B clouds, N points, M centres, K neighbours, P = B M K pairs, C channels in, D channels out.

The published form gathers [f_j - f_i ; f_i] for every pair of a centre i and a neighbour j, and applies two LBRs and a
maximum over the neighbours. The first map W = [A | E] is linear, so W [f_j - f_i ; f_i] = A f_j + (E - A) f_i: computed
once a point instead of once a pair, then gathered and added. The batch norm behind it is an affine map of that sum, so
it is applied once a point too; its statistics over the pairs follow from sums over points and one sum over pairs. The
rest of a training step's work on pairs is in pair_maximum.py. Same function, same gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pointcloud.geometry import flat_index, group
from pointcloud.pair_maximum import pair_maximum
from shared_attn.functional import full_precision
from shared_attn.products import linear
from shared_attn.runtime.processes import count_processes
from shared_attn.runtime.synchronised_norms import merge_moments


class PairNorm(nn.BatchNorm1d):
    """Batch norm of all pair sums near[j] + centre[i], as one affine map, without forming the pairs."""

    synchronised = False

    def pair_affine(self, near: Tensor, centre: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,): batch norm of a pair sum s is scale * s + shift.

        Args:
            near: (B, N, C) the neighbours' part, of all points; centre: (B, M, C) the centres' part; float32 or wider.
            neighbours: (B, M, K) indices of points.
        """
        assert self.running_mean is not None and self.running_var is not None
        if not self.training:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance = _PairStatistics.apply(near, centre, neighbours)
            mean, variance = take_statistics(self, mean, variance, neighbours.numel())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - scale * mean


def take_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance that a batch norm normalises with, for those of `count` values; updates its buffers.

    They are the same, or the whole batch's where processes share one (`synchronise_norms`).
    """
    if getattr(norm, "synchronised", False):
        mean, variance = merge_moments(mean, variance)
        count *= count_processes()
    update_running(norm, mean.detach(), variance.detach(), count)
    return mean, variance


@torch.no_grad()
def update_running(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: int) -> None:
    """What a batch norm's forward does to its buffers, for statistics of `count` values; biased `variance`."""
    assert norm.running_mean is not None and norm.running_var is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum: Any = norm.momentum
    if momentum is None:  # the mean of all batches
        assert norm.num_batches_tracked is not None
        momentum = 1 / norm.num_batches_tracked.to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)


class _PairStatistics(torch.autograd.Function):
    """Mean and (biased) variance over all pairs of near[j] + centre[i], (B, N, C) and (B, M, C).

    With both parts centred, var = sum_j n_j u_j^2 / P + sum_i w_i^2 / (B M) + 2 sum_i w_i . (sum_j of i u_j) / P, n_j
    being how often j is a neighbour. The gradient of a pair sum s is dmean / P + dvariance 2 (s - mean) / P.
    """

    @staticmethod
    def forward(ctx: Any, near: Tensor, centre: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
        (B, N), P = near.shape[:2], neighbours.numel()
        index = flat_index(neighbours, N)
        count = near.new_zeros(B * N).index_add_(0, index, near.new_ones(P))  # n_j
        near_mean, centre_mean = count @ near.flatten(0, 1) / P, centre.mean((0, 1))
        near, centre = near - near_mean, centre - centre_mean
        summed = F.embedding_bag(index.view(-1, neighbours.shape[2]), near.flatten(0, 1), mode="sum").view_as(centre)
        variance = count @ near.flatten(0, 1).square() + (2 * summed * centre).sum((0, 1))
        variance = (variance / P + centre.square().mean((0, 1))).clamp_min(0)
        ctx.save_for_backward(near, centre, neighbours, count.view(B, N, 1), summed)
        return near_mean + centre_mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        near, centre, neighbours, count, summed = ctx.saved_tensors
        K, P = neighbours.shape[2], neighbours.numel()
        level, slope = grad_mean / P, grad_variance * (2 / P)
        grad_near = torch.addcmul(level * count, near * count + sum_by_neighbour(centre, neighbours, near), slope)
        return grad_near, torch.addcmul(K * level, centre * K + summed, slope), None


def sum_by_neighbour(centre: Tensor, neighbours: Tensor, near: Tensor) -> Tensor:
    """For each point the sum of centre[i] over the pairs whose neighbour it is: (B, M, C) -> (B, N, C), as near is."""
    total = torch.zeros_like(near)
    rows = centre.unsqueeze(2).expand(*neighbours.shape, -1)  # (B, M, K, C)
    if near.device.type == "cpu" and not torch.compiler.is_compiling():  # a cloud at a time stays in the cache
        for cloud in range(len(total)):
            total[cloud].index_add_(0, neighbours[cloud].flatten(), rows[cloud].flatten(0, 1))
        return total
    return total.flatten(0, 1).index_add(0, flat_index(neighbours, near.shape[1]), rows.flatten(0, 2)).view_as(near)


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
        difference, own = self.first.weight.chunk(2, dim=1)  # A and E, (D, C) each
        near = linear(features, difference)  # (B, N, D)
        centre = linear(group(features, centres), own - difference)  # (B, M, D)
        dtype = near.dtype  # under autocast the products'
        with full_precision(near):
            wide = torch.promote_types(dtype, torch.float32)
            near, centre = near.to(wide), centre.to(wide)
            scale, shift = self.first_norm.pair_affine(near, centre, neighbours)
            near, centre = near * scale, torch.addcmul(shift, centre, scale)
            second = self._second_by_batch if self.second_norm.training else self._second
            return second(near, centre, neighbours, dtype).to(dtype)

    def _second_by_batch(self, near: Tensor, centre: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
        norm = self.second_norm
        sign = torch.where(norm.weight < 0, -1.0, 1.0).to(near.dtype)  # the largest z becomes the largest y
        signed = sign.unsqueeze(1) * self.second.weight
        largest, mean, variance = pair_maximum(near, centre, neighbours, signed, dtype)
        mean, variance = take_statistics(norm, sign * mean, variance, neighbours.numel())
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return torch.addcmul(norm.bias - scale * mean, largest, sign * scale).relu()

    def _second(self, near: Tensor, centre: Tensor, neighbours: Tensor, dtype: torch.dtype) -> Tensor:
        """With the running statistics, which fold into the map; ReLU is monotone, so it comes after the maximum."""
        norm = self.second_norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - scale * norm.running_mean
        h = (group(near, neighbours) + centre.unsqueeze(2)).relu_().to(dtype)  # (B, M, K, D)
        z = F.linear(h, (scale.unsqueeze(1) * self.second.weight).to(dtype))
        return F.relu(z.amax(2) + shift)
