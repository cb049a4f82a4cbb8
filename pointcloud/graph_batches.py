"""Networks on torch_geometric's `Data` and `Batch`, whose clouds lie end to end and may differ in size.

B clouds, T points of all of them together. torch_geometric itself is not imported: an object with `pos` will do.

Clouds of one size are one batch (B, N, 3): the same numbers as from a tensor. Clouds of different sizes are neither
padded nor resampled: those of each size go through the network together, so every cloud gets exactly what it gets
alone, whatever the attention. That holds in evaluation mode, where batch norm does not look at the batch; a training
step on different sizes would have statistics of its own for each size, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Graphs(Protocol):
    """What is used of a `Data` or `Batch`: pos (T, 3), and where they are there `ptr` or `batch`, and `category`."""

    @property
    def pos(self) -> Any: ...


def classify_graphs(network: nn.Module, graphs: Graphs) -> Tensor:
    """Class logits (B, K)."""
    sizes = count_points(graphs)
    found: list[Tensor | None] = [None] * len(sizes)
    for items, points in _by_size(network, graphs, sizes):
        for item, logits in zip(items, network(points), strict=True):
            found[item] = logits
    return torch.stack([logits for logits in found if logits is not None])


def segment_graphs(network: Callable[..., Tensor], graphs: Graphs, category: Tensor | None) -> Tensor:
    """Part logits (T, S), a row for each row of `pos`.

    Args:
        category: (B,), or None for a network without.
    """
    sizes = count_points(graphs)
    if category is not None and category.numel() != len(sizes):
        raise ValueError(f"category has {category.numel()} numbers, expected one for each of {len(sizes)} clouds")
    found: list[Tensor | None] = [None] * len(sizes)
    for items, points in _by_size(network, graphs, sizes):
        given = () if category is None else (category.flatten()[torch.tensor(items, device=category.device)],)
        for item, logits in zip(items, network(points, *given), strict=True):
            found[item] = logits
    return torch.cat([logits for logits in found if logits is not None])


def count_points(graphs: Graphs) -> list[int]:
    """Points of each cloud.

    Raises:
        ValueError: not (T, 3) positions, an empty cloud, or clouds that do not lie one after the other.
    """
    pos = getattr(graphs, "pos", None)
    if not isinstance(pos, Tensor) or pos.ndim != 2 or pos.shape[1] != 3:
        raise ValueError(f"expected a tensor (B, N, 3), or a Data or Batch with pos (points, 3), got {graphs!r:.80}")
    pointers, batch = getattr(graphs, "ptr", None), getattr(graphs, "batch", None)
    if pointers is not None:
        sizes = pointers.diff().tolist()
    elif batch is not None:
        if (batch.diff() < 0).any():
            raise ValueError("batch is not in order: the points of each cloud must lie one after the other")
        sizes = batch.bincount().tolist()
    else:
        sizes = [len(pos)]
    if sum(sizes) != len(pos) or min(sizes, default=0) < 1:
        raise ValueError(f"clouds of {sizes[:8]} points in a pos of {len(pos)}: expected at least one point each")
    return sizes


def _by_size(network: Any, graphs: Graphs, sizes: list[int]) -> Iterator[tuple[list[int], Tensor]]:
    """For each size, which clouds have it, and their points (n, size, 3)."""
    if len(set(sizes)) == 1:
        yield list(range(len(sizes))), graphs.pos.view(len(sizes), sizes[0], 3)
        return
    if network.training:
        raise ValueError(
            f"clouds of {min(sizes)} to {max(sizes)} points in one training step: expected one size, for example by "
            "torch_geometric.transforms.FixedPoints; clouds of different sizes are for evaluation"
        )
    clouds = graphs.pos.split(sizes)
    for size in sorted(set(sizes)):
        items = [item for item, count in enumerate(sizes) if count == size]
        yield items, torch.stack([clouds[item] for item in items])
