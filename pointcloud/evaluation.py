"""Metrics of a network over a set of clouds: deterministic, in float32, to the bit the same for every batch size.

B batch, N points, K classes or parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.augmentation import read_clouds
from pointcloud.clouds import CloudSet
from pointcloud.draws import uniform
from pointcloud.metrics import (
    category_mask,
    confusion_matrix,
    largest_parts,
    mean_class_accuracy,
    overall_accuracy,
    segmentation_metrics,
)
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime.processes import WHOLE, Share, gather_rows

# The network always sees groups of one size, which depends on the number of points alone: matrix products of another
# shape may round differently, and then a cloud's answer would depend on the batch it came in.
GROUP_CLOUDS, GROUP_POINTS = 32, 2**15

Change = Callable[[Tensor, Tensor], Tensor]
"""Points (B, N, 3) and their clouds' numbers (B,) -> what the network is shown instead, (B, N', 3)."""


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    clouds: CloudSet,
    num_points: int,
    *,
    batch_size: int = 64,
    votes: int = 1,
    change: Change | None = None,
    share: Share = WHOLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Items (B,) and their logits (B, K) or (B, N, K), batch by batch, in order: the same bits for every batch size.

    The first num_points stored points of each cloud are used (they are stored in random order); all where it has fewer.
    With votes > 1 the softmax is averaged over that view and votes - 1 random scalings (2/3 to 3/2 each axis), which
    follow from the cloud's number alone.

    Args:
        batch_size: clouds a batch, rounded up to whole groups (32 clouds of 1,024 points, 16 of 2,048).
        change: what is done to the points first, for example a corruption; for a classifier.
        share: of the groups, where several processes share them; each yields its own.
    """
    network.eval()
    size = group_size(min(num_points, clouds.points.shape[1]))
    everyone = torch.arange(len(clouds), device=clouds.label.device)
    groups = everyone.split(size)[share.rank :: share.count]
    at_once = -(-batch_size // size)
    for batch in (groups[start : start + at_once] for start in range(0, len(groups), at_once)):
        logits = []
        for group in batch:
            padded = torch.cat([group, group[-1:].expand(size - len(group))])
            points = read_clouds(clouds.points, padded, None, clouds.unit)[:, :num_points]
            if change is not None:
                points = change(points, padded)
            category = (clouds.label[padded],) if takes_category(network) else ()
            logits.append(vote(network, points, category, padded, votes)[: len(group)])
        yield torch.cat(batch), torch.cat(logits)


def group_size(num_points: int) -> int:
    """Clouds of so many points that the network sees at a time."""
    return min(GROUP_CLOUDS, max(1, GROUP_POINTS // num_points))


def vote(network: nn.Module, points: Tensor, category: tuple[Tensor, ...], items: Tensor, votes: int) -> Tensor:
    """Logits of clouds as they are; with votes > 1 the logarithm of the mean softmax over them and their scalings."""
    logits = network(points, *category).float()
    if votes == 1:
        return logits
    total = logits.softmax(-1).double()
    for number in range(1, votes):
        factor = 2 / 3 + (3 / 2 - 2 / 3) * uniform(items, torch.full_like(items, number), 3, "vote")
        total += network(points * factor.unsqueeze(1), *category).float().softmax(-1)
    return (total / votes).log().float()


def takes_category(network: nn.Module) -> bool:
    """Whether the network wants the shapes' categories beside their points."""
    return isinstance(network, PartSegmenter) and network.num_categories > 0


def evaluate_classifier(
    network: nn.Module,
    clouds: CloudSet,
    num_points: int,
    *,
    batch_size: int = 64,
    votes: int = 1,
    change: Change | None = None,
    share: Share = WHOLE,
) -> tuple[dict[str, float], Tensor]:
    """Overall and mean class accuracy, with their protocol in the name, and the confusion matrix (K, K).

    `share`: see `predict_logits`; every process gets the metrics of all clouds.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "votes": votes, "change": change, "share": share}
    predicted = torch.zeros_like(clouds.label)
    for items, logits in predict_logits(network, clouds, num_points, **how):
        predicted[items] = logits.argmax(-1)
    predicted = gather_rows(predicted, share)
    confusion = confusion_matrix(predicted, clouds.label, len(clouds.class_names))
    suffix = f"_vote{votes}" if votes > 1 else ""
    return {
        "overall_accuracy" + suffix: overall_accuracy(confusion),
        "mean_class_accuracy" + suffix: mean_class_accuracy(confusion),
    }, confusion


def evaluate_segmenter(
    network: nn.Module,
    clouds: CloudSet,
    num_points: int,
    *,
    batch_size: int = 16,
    votes: int = 1,
    share: Share = WHOLE,
) -> dict[str, float]:
    """Instance and class mIoU and point accuracy, with the logits masked to the category's parts and without.

    `share`: see `predict_logits`; every process gets the metrics of all clouds.
    """
    assert clouds.part_label is not None
    truth = clouds.part_label[:, :num_points]
    among_all, masked = torch.zeros((2, *truth.shape), dtype=torch.long, device=truth.device)
    for items, logits in predict_logits(network, clouds, num_points, batch_size=batch_size, votes=votes, share=share):
        own = category_mask(clouds.label[items], logits.shape[-1], clouds.part_start, clouds.part_count)
        among_all[items] = logits.argmax(-1)
        masked[items] = logits.masked_fill(~own, -torch.inf).argmax(-1)
    among_all, masked = gather_rows(among_all, share), gather_rows(masked, share)
    metrics = segmentation_metrics(among_all, masked, truth, clouds.label, clouds.part_start, clouds.part_count)
    return {name + (f"_vote{votes}" if votes > 1 else ""): value for name, value in metrics.items()}


def evaluate_largest_part(train_set: CloudSet, clouds: CloudSet, num_points: int) -> dict[str, float]:
    """What a segmenter must beat: every point of a shape labelled with its category's largest part in training.

    The masked metrics of `evaluate_segmenter`, under names that begin with largest_part_.
    """
    assert train_set.part_label is not None and clouds.part_label is not None
    start, count = clouds.part_start, clouds.part_count
    largest = largest_parts(train_set.part_label, train_set.label, start, count)
    truth = clouds.part_label[:, :num_points]
    answer = largest[clouds.label].unsqueeze(1).expand_as(truth)
    metrics = segmentation_metrics(answer, answer, truth, clouds.label, start, count)
    return {f"largest_part_{name}": value for name, value in metrics.items() if not name.endswith("_unmasked")}
