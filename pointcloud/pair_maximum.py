"""The neighbour embedding's work on pairs: their sums are made again in the backward, not stored; z alone is kept.

B clouds, N points, M centres, K neighbours, P = B M K pairs, C channels in, D channels out.

    h = relu(near[j] + centre[i]),  z = W h,  largest[i] = max over the neighbours j of i of z,

with the mean and variance of z over all pairs, for the batch norm behind it. That norm and its ReLU are monotone in z
once W's rows carry the sign of the norm's weight, so they are applied to `largest`: once a centre, not once a pair.
With g the gradient of `largest`, and those of mean and variance, every pair's gradient is

    dz = (g / (neighbours at the maximum) at the maximum, 0 elsewhere) + dmean / P + dvariance 2 (z - mean) / P.

On a CPU a few centres at a time go all the way, so that their pairs stay in its cache; the products are then all that
takes time. Elsewhere all pairs go at once, in few kernels, and the maximum's gradient goes to one neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointcloud.geometry import flat_index
from shared_attn.products import product

CHUNK = 2**18
"""Numbers of a chunk of pairs, and thread; 1 MiB: a few of them in a core's caches, and time enough for each call."""


def pair_maximum(
    near: Tensor, centre: Tensor, neighbours: Tensor, weight: Tensor, product_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest W relu(near[j] + centre[i]) over each centre's neighbours, and the mean and variance over all pairs.

    Args:
        near: (B, N, C) the neighbours' part, of all points; centre: (B, M, C) the centres' part, of the same type.
        neighbours: (B, M, K) indices of points.
        weight: (D, C).
        product_dtype: what h and W are rounded to for the products, and z by them; None is near's. The rest is float32
            or wider.

    Returns:
        (B, M, D), mean (D,) and biased variance (D,), in the type of near. Differentiable once.
    """
    largest, mean, variance = _PairMaximum.apply(near, centre, neighbours, weight, product_dtype or near.dtype)
    return largest, mean, variance


class _PairMaximum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, near: Tensor, centre: Tensor, neighbours: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.dtype = dtype
        forward = chunked_maximum if near.device.type == "cpu" else _maximum
        largest, mean, variance, *kept = forward(near, centre, neighbours, weight, dtype)
        ctx.save_for_backward(near, centre, neighbours, weight, mean, *kept)
        return largest, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        near, centre, neighbours, weight, mean, *kept = ctx.saved_tensors
        slope = grad_variance * (2 / neighbours.numel())
        level = grad_mean / neighbours.numel() - slope * mean
        backward = chunked_maximum_backward if near.device.type == "cpu" else _maximum_backward
        given = (near, centre, neighbours, weight, ctx.dtype, *kept)
        grad_near, grad_centre, grad_weight = backward(grad.contiguous(), level, slope, *given)
        return grad_near, grad_centre, None, grad_weight, None


@torch.library.custom_op("pointcloud::pair_maximum", mutates_args=(), device_types="cpu")
def chunked_maximum(
    near: Tensor, centre: Tensor, neighbours: Tensor, weight: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`pair_maximum`'s forward, a few centres at a time; also z (B, M, K, D) in the products' type."""
    (B, M, K), D = neighbours.shape, weight.shape[0]
    largest, kept = near.new_empty(B, M, D), near.new_empty((B, M, K, D), dtype=dtype)
    weight = weight.to(dtype)
    counts, means, variances = [], [], []
    for cloud, part, index in _chunks(neighbours, max(near.shape[2], D)):
        z = product(_hidden(near[cloud], centre[cloud, part], index).to(dtype), weight)
        kept[cloud, part] = z.view(-1, K, D)
        z = z.to(near.dtype)
        torch.amax(z.view(-1, K, D), 1, out=largest[cloud, part])
        mean, variance = torch.batch_norm_update_stats(z, None, None, 0.0)
        counts.append(len(z))
        means.append(mean)
        variances.append(variance)
    # Means and variances of the chunks make those of all: no difference of large sums.
    count = torch.tensor(counts, dtype=torch.float64).unsqueeze(1) / neighbours.numel()
    chunk_means = torch.stack(means).double()
    mean = (count * chunk_means).sum(0)
    variance = (count * (torch.stack(variances).double() + (chunk_means - mean).square())).sum(0)
    return largest, mean.to(near.dtype), variance.to(near.dtype), kept


@chunked_maximum.register_fake
def _(
    near: Tensor, _centre: Tensor, neighbours: Tensor, weight: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (B, M, K), D = neighbours.shape, weight.shape[0]
    kept = near.new_empty((B, M, K, D), dtype=dtype)
    return near.new_empty(B, M, D), near.new_empty(D), near.new_empty(D), kept


@torch.library.custom_op("pointcloud::pair_maximum_backward", mutates_args=(), device_types="cpu")
def chunked_maximum_backward(
    grad: Tensor,
    level: Tensor,
    slope: Tensor,
    near: Tensor,
    centre: Tensor,
    neighbours: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of near, centre and weight; dz is grad at the maximum, + level + slope z."""
    (_, _, K), (D, C) = neighbours.shape, weight.shape
    grad_near, grad_centre = torch.zeros_like(near), torch.empty_like(centre)
    grad_weight = near.new_zeros(D, C)
    columns = weight.to(dtype).t()
    for cloud, part, index in _chunks(neighbours, max(C, D)):
        h = _hidden(near[cloud], centre[cloud, part], index)  # (p, C) of p pairs
        z = kept[cloud, part].to(near.dtype)
        at_maximum = torch.ge(z, z.amax(1, keepdim=True), out=torch.empty_like(z))  # 1 and 0, in z's type
        share = grad[cloud, part].unsqueeze(1) / at_maximum.sum(1, keepdim=True)
        dz = torch.addcmul(level, z, slope).addcmul_(at_maximum, share).view(-1, D).to(dtype)
        grad_weight += product(dz.t(), h.to(dtype).t())
        dh = product(dz, columns).to(near.dtype)
        torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)
        torch.sum(dh.view(-1, K, C), 1, out=grad_centre[cloud, part])
        grad_near[cloud].index_add_(0, index, dh)
    return grad_near, grad_centre, grad_weight


@chunked_maximum_backward.register_fake
def _(
    _grad: Tensor,
    _level: Tensor,
    _slope: Tensor,
    near: Tensor,
    centre: Tensor,
    _neighbours: Tensor,
    weight: Tensor,
    _dtype: torch.dtype,
    _kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(near), torch.empty_like(centre), torch.empty_like(weight, dtype=near.dtype)


def _chunks(neighbours: Tensor, channels: int) -> Iterator[tuple[int, slice, Tensor]]:
    """Cloud, centres, and their neighbours' indices; never over two clouds, so a cloud's result is its own."""
    B, M, K = neighbours.shape
    step = max(1, CHUNK * torch.get_num_threads() // (K * channels))
    step = -(-M // -(-M // step))  # as many chunks, of one size
    for cloud in range(B):
        for start in range(0, M, step):
            part = slice(start, min(start + step, M))
            yield cloud, part, neighbours[cloud, part].flatten()


def _hidden(near: Tensor, centre: Tensor, index: Tensor) -> Tensor:
    """relu(near[j] + centre[i]): (N, C), (m, C), (m K,) -> (m K, C)."""
    h = near.index_select(0, index)
    h.view(len(centre), -1, centre.shape[1]).add_(centre.unsqueeze(1))
    return h.relu_()


def _maximum(
    near: Tensor, centre: Tensor, neighbours: Tensor, weight: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All pairs at once; also z (B, M, K, D), and which neighbour is the largest (B, M, D)."""
    h = _all_hidden(near, centre, neighbours)
    z = F.linear(h.to(dtype), weight.to(dtype))
    largest, which = z.max(2)
    variance, mean = torch.var_mean(z.to(near.dtype), (0, 1, 2), correction=0)
    return largest.to(near.dtype), mean, variance, z, which.to(torch.int16)


def _maximum_backward(
    grad: Tensor,
    level: Tensor,
    slope: Tensor,
    near: Tensor,
    centre: Tensor,
    neighbours: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    z: Tensor,
    which: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    h = _all_hidden(near, centre, neighbours)
    place = torch.arange(z.shape[2], device=z.device, dtype=which.dtype).view(-1, 1)
    at_maximum = torch.where(which.unsqueeze(2) == place, grad.unsqueeze(2), 0)
    dz = (at_maximum + level + slope * z).to(dtype).flatten(0, 2)
    grad_weight = dz.t() @ h.to(dtype).flatten(0, 2)
    dh = torch.where(h > 0, (dz @ weight.to(dtype)).view_as(h), 0).to(near.dtype)
    grad_near = torch.zeros_like(near).flatten(0, 1)
    grad_near = grad_near.index_add(0, flat_index(neighbours, near.shape[1]), dh.flatten(0, 2)).view_as(near)
    return grad_near, dh.sum(2), grad_weight.to(near.dtype)


def _all_hidden(near: Tensor, centre: Tensor, neighbours: Tensor) -> Tensor:
    pairs = near.flatten(0, 1).index_select(0, flat_index(neighbours, near.shape[1]))
    return (pairs.view(*neighbours.shape, -1) + centre.unsqueeze(2)).relu()  # (B, M, K, C)
