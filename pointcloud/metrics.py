"""Accuracy and part IoU, from counts over the whole split in integers and float64, never as means of batches.

D shapes, P points, K classes, S parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(D,) and (D,) -> (K, K) int64 counts, true classes in rows."""
    cell = truth.long() * num_classes + predicted.long()
    return torch.bincount(cell.flatten().cpu(), minlength=num_classes**2).view(num_classes, num_classes)


def overall_accuracy(confusion: Tensor) -> float:
    """Correct over all."""
    return float(confusion.diagonal().sum()) / max(float(confusion.sum()), 1.0)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Mean of the recalls of the classes that occur."""
    counts = confusion.sum(1)
    recalls = confusion.diagonal().double()[counts > 0] / counts[counts > 0]
    return float(recalls.mean()) if len(recalls) else 0.0


def shape_ious(predicted: Tensor, truth: Tensor, label: Tensor, start: Sequence[int], count: Sequence[int]) -> Tensor:
    """(D,) float64: each shape's IoU, the mean over the parts of its own category.

    A part absent from truth and prediction counts 1.

    Args:
        predicted, truth: (D, P) global part ids.
        label: (D,) categories; category c owns the parts start[c] .. start[c] + count[c] - 1.
    """
    ious = torch.empty(len(label), dtype=torch.float64)
    for shape, category in enumerate(label.tolist()):
        parts = torch.arange(start[category], start[category] + count[category], device=truth.device).unsqueeze(1)
        said, true = predicted[shape] == parts, truth[shape] == parts  # (parts, P)
        union = (said | true).sum(1).double()
        ious[shape] = torch.where(union > 0, (said & true).sum(1) / union.clamp_min(1), 1.0).mean()
    return ious


def segmentation_metrics(
    logits_argmax: Tensor,
    masked_argmax: Tensor,
    truth: Tensor,
    label: Tensor,
    start: Sequence[int],
    count: Sequence[int],
) -> dict[str, float]:
    """The metrics of part segmentation, of predictions among the category's own parts (masked) and among all.

    instance_mean_iou: mean over shapes; class_mean_iou: mean over the categories that occur of their shapes' mean.
    """
    metrics = {}
    for suffix, predicted in (("", masked_argmax), ("_unmasked", logits_argmax)):
        ious = shape_ious(predicted, truth, label, start, count)
        by_class = [ious[label.cpu() == category].mean() for category in label.unique().tolist()]
        metrics["instance_mean_iou" + suffix] = float(ious.mean())
        metrics["class_mean_iou" + suffix] = float(torch.stack(by_class).mean())
        metrics["point_accuracy" + suffix] = float((predicted == truth).double().mean())
    return metrics


def largest_parts(part_label: Tensor, label: Tensor, start: Sequence[int], count: Sequence[int]) -> Tensor:
    """(K,): the part of each category that the most points of its shapes belong to; of equals the first.

    Args:
        part_label: (D, P) global part ids; label: (D,) categories. A category that does not occur has its first part.
    """
    largest = []
    for category, (first, parts) in enumerate(zip(start, count, strict=True)):
        own = part_label[label == category].flatten().long() - first
        largest.append(first + int(torch.bincount(own, minlength=parts).argmax()))
    return torch.tensor(largest, device=label.device)


def category_mask(label: Tensor, num_parts: int, start: Sequence[int], count: Sequence[int]) -> Tensor:
    """(D,) categories -> (D, 1, S) bool, True at the parts that belong to the category."""
    begin = torch.as_tensor(start, device=label.device)[label.long()].view(-1, 1, 1)
    length = torch.as_tensor(count, device=label.device)[label.long()].view(-1, 1, 1)
    part = torch.arange(num_parts, device=label.device)
    return (part >= begin) & (part < begin + length)
