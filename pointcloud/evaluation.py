"""Metrics of a network over a set of clouds: deterministic, in float32, the same for every batch size.

B batch, N points, K classes or parts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pointcloud.augmentation import read_clouds
from pointcloud.clouds import CloudSet
from pointcloud.draws import uniform
from pointcloud.metrics import (
    category_mask,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    segmentation_metrics,
)
from pointcloud.segmenter import PartSegmenter


@torch.no_grad()
def predict_logits(
    network: nn.Module, clouds: CloudSet, num_points: int, *, batch_size: int = 64, votes: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Items (B,) and their logits (B, K) or (B, N, K), batch by batch, in order.

    The first num_points stored points of each cloud are used (they are stored in random order); all where it has fewer.
    With votes > 1 the softmax is averaged over that view and votes - 1 random scalings (2/3 to 3/2 each axis), which
    follow from the cloud's number alone.
    """
    network.eval()
    for items in torch.arange(len(clouds), device=clouds.label.device).split(batch_size):
        category = (clouds.label[items],) if takes_category(network) else ()
        points = read_clouds(clouds.points, items, None, clouds.unit)[:, :num_points]
        logits = network(points, *category).float()
        if votes > 1:
            total = logits.softmax(-1).double()
            for vote in range(1, votes):
                factor = 2 / 3 + (3 / 2 - 2 / 3) * uniform(items, torch.full_like(items, vote), 3, "vote")
                total += network(points * factor.unsqueeze(1), *category).float().softmax(-1)
            logits = (total / votes).log().float()
        yield items, logits


def takes_category(network: nn.Module) -> bool:
    """Whether the network wants the shapes' categories beside their points."""
    return isinstance(network, PartSegmenter) and network.num_categories > 0


def evaluate_classifier(
    network: nn.Module, clouds: CloudSet, num_points: int, *, batch_size: int = 64, votes: int = 1
) -> tuple[dict[str, float], Tensor]:
    """Overall and mean class accuracy, with their protocol in the name, and the confusion matrix (K, K)."""
    predicted = torch.cat(
        [logits.argmax(-1) for _, logits in predict_logits(network, clouds, num_points, batch_size=batch_size, votes=votes)]
    )
    confusion = confusion_matrix(predicted, clouds.label, len(clouds.class_names))
    suffix = f"_vote{votes}" if votes > 1 else ""
    return {
        "overall_accuracy" + suffix: overall_accuracy(confusion),
        "mean_class_accuracy" + suffix: mean_class_accuracy(confusion),
    }, confusion


def evaluate_segmenter(
    network: nn.Module, clouds: CloudSet, num_points: int, *, batch_size: int = 16, votes: int = 1
) -> dict[str, float]:
    """Instance and class mIoU and point accuracy, with the logits masked to the category's parts and without."""
    assert clouds.part_label is not None
    among_all, masked = [], []
    for items, logits in predict_logits(network, clouds, num_points, batch_size=batch_size, votes=votes):
        own = category_mask(clouds.label[items], logits.shape[-1], clouds.part_start, clouds.part_count)
        among_all.append(logits.argmax(-1))
        masked.append(logits.masked_fill(~own, -torch.inf).argmax(-1))
    truth = clouds.part_label[:, :num_points]
    metrics = segmentation_metrics(
        torch.cat(among_all), torch.cat(masked), truth, clouds.label, clouds.part_start, clouds.part_count
    )
    return {name + (f"_vote{votes}" if votes > 1 else ""): value for name, value in metrics.items()}
