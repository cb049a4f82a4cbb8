"""Batch norm over the rows of all processes, as if one process had them all.

Legend: B batch of this process, N tokens, C channels, H W grid, P processes.

The same on any device and backend (`torch.nn.SyncBatchNorm` refuses a CPU), and differentiable twice, which a gradient
penalty through a network with batch norm needs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared_attn.runtime.processes import count_processes, sum_over_processes


def merge_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of the whole batch from those of this process's share; all shares are equal.

    Differentiable, and without a difference of large numbers: variance = mean of the variances + variance of the means.
    """
    # Each process fills in its row of zeros: the sum is the table of all.
    mine = torch.arange(count_processes(), device=mean.device) == dist.get_rank()  # (P,)
    means, variances = sum_over_processes(torch.stack([mean, variance]) * mine[:, None, None]).unbind(dim=1)  # (P, C)
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)


def normalise_over_processes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of this process's share x (B, C, ...) of a batch that all processes share evenly.

    Statistics are computed in float32 at least.

    Returns:
        The normalised share in x's type, and mean and variance (C,) of the whole batch.
    """
    rows, shape = [axis for axis in range(x.ndim) if axis != 1], [1, -1] + [1] * (x.ndim - 2)
    full = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(full, dim=rows, correction=0)
    mean, variance = merge_moments(mean, variance)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    normed = torch.addcmul(shift.view(shape), full, scale.view(shape))
    return normed.to(x.dtype), mean.detach(), variance.detach()


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` with the statistics of all processes while it trains; they must share the batch evenly."""

    synchronised = True
    checked = False

    def forward(self, x: Tensor) -> Tensor:
        return _train(self, x) if self.training and count_processes() > 1 else super().forward(x)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all processes while it trains; they must share the batch evenly."""

    synchronised = True
    checked = False

    def forward(self, x: Tensor) -> Tensor:
        return _train(self, x) if self.training and count_processes() > 1 else super().forward(x)


def _train(norm: SynchronisedBatchNorm1d | SynchronisedBatchNorm2d, x: Tensor) -> Tensor:
    """What a batch norm does in training: normalises, and updates its running statistics."""
    if not norm.checked:
        _check_shares(x)
        norm.checked = True
    normed, mean, variance = normalise_over_processes(x, norm.weight, norm.bias, norm.eps)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            part = norm.momentum
            if part is None:  # a cumulative mean
                part = 1 / float(norm.num_batches_tracked)
            count = x.numel() // x.shape[1] * count_processes()
            norm.running_mean.lerp_(mean.to(norm.running_mean), part)
            norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), part)
    return normed


def _check_shares(x: Tensor) -> None:
    """Refuses a batch that the processes do not share evenly: its mean would not be the mean of theirs."""
    sizes = torch.zeros(count_processes(), dtype=torch.long, device=x.device)
    sizes[dist.get_rank()] = len(x)
    dist.all_reduce(sizes)
    if len(set(sizes.tolist())) > 1:
        raise ValueError(f"batch norm over processes: shares of {sizes.tolist()} rows, expected equal ones")


def synchronise_norms(network: nn.Module) -> None:
    """Exchange each batch norm of a network for one over all processes, in place; parameters and buffers stay.

    A module with an attribute `synchronised` merges its statistics itself (`merge_moments`) once that is True.
    """
    modules: list[Any] = list(network.modules())
    for module in modules:
        if hasattr(module, "synchronised"):
            module.synchronised = True
        for name, child in list(module.named_children()):
            if type(child) in CONVERTED:
                setattr(module, name, _convert(child))


CONVERTED: dict[type[nn.Module], type[nn.BatchNorm1d | nn.BatchNorm2d]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
}


def _convert(norm: nn.Module) -> nn.Module:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    converted = CONVERTED[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    converted._parameters, converted._buffers = norm._parameters, norm._buffers
    return converted.train(norm.training)
