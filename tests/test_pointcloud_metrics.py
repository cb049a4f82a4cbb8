"""The point networks' loss and metrics: worked examples and counts over everything."""

from __future__ import annotations

import pytest
import torch

from pointcloud.losses import smoothed_cross_entropy
from pointcloud.metrics import (
    category_mask,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    segmentation_metrics,
)


def test_label_smoothing_spreads_over_the_other_classes() -> None:
    logits, label = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.full((6, 5), 0.2 / 4, dtype=torch.float64)
    target[torch.arange(6), label] = 0.8
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    assert float(smoothed_cross_entropy(logits, label, 0.2)) == pytest.approx(float(expected), abs=1e-6)


def test_accuracies_count_over_everything_and_not_over_batches() -> None:
    truth = torch.tensor([0] * 8 + [1] * 2)
    predicted = torch.tensor([0] * 8 + [0, 1])
    confusion = confusion_matrix(predicted, truth, 3)
    assert confusion.tolist() == [[8, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert overall_accuracy(confusion) == pytest.approx(0.9)
    assert mean_class_accuracy(confusion) == pytest.approx(0.75)  # the class that does not occur does not count


def test_part_iou_of_a_worked_example() -> None:
    start, count = [0, 2], [2, 3]
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 2, 2]])
    predicted = torch.tensor([[0, 1, 1, 1], [2, 2, 3, 3], [2, 2, 2, 3]])
    label = torch.tensor([0, 1, 1])
    first = (1 / 2 + 2 / 3) / 2
    second = 1.0  # its third part is absent from truth and prediction
    third = (3 / 4 + 0 + 1) / 3
    metrics = segmentation_metrics(predicted, truth, truth, label, start, count)
    assert metrics["instance_mean_iou_unmasked"] == pytest.approx((first + second + third) / 3)
    assert metrics["class_mean_iou_unmasked"] == pytest.approx((first + (second + third) / 2) / 2)
    assert metrics["point_accuracy_unmasked"] == pytest.approx(10 / 12)
    swapped = segmentation_metrics(truth, predicted, truth, label, start, count)
    assert (
        swapped["instance_mean_iou"] == metrics["instance_mean_iou_unmasked"]
        and swapped["class_mean_iou_unmasked"] == 1
    )
    assert category_mask(label, 5, start, count)[:, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
