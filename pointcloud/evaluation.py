"""Metrics of a network over a set of clouds: deterministic, in float32, the same for every batch size.

B batch, N points, K classes or parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.augmentation import read_clouds
from pointcloud.clouds import CloudSet
from pointcloud.datasets import Split, load_split
from pointcloud.draws import uniform
from pointcloud.metrics import (
    category_mask,
    confusion_matrix,
    mean_class_accuracy,
    overall_accuracy,
    segmentation_metrics,
)
from pointcloud.models import CLASSIFIER, load_model
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime.launch import create_fabric


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
        [
            logits.argmax(-1)
            for _, logits in predict_logits(network, clouds, num_points, batch_size=batch_size, votes=votes)
        ]
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


def evaluate_file(
    weights: str,
    data: str,
    *,
    dataset: str = "",
    split: Split = "test",
    votes: int = 1,
    num_points: int = 0,
    batch_size: int = 32,
    device: str = "auto",
) -> tuple[dict[str, Any], Tensor | None]:
    """Metrics of weights on a split, with what they were measured on, and a classifier's confusion matrix.

    Args:
        weights: see `pointcloud.models.load_model`; data, dataset: see `pointcloud.datasets.load_split`.
        votes: see `predict_logits`; num_points: 0 for as many as in training.

    Raises:
        ValueError, FileNotFoundError: weights or data that are not there or do not fit each other, or a wrong number.
    """
    for flag, value, least in (("votes", votes, 1), ("num-points", num_points, 0), ("batch-size", batch_size, 1)):
        if value < least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")
    model = load_model(weights)
    clouds = load_split(data, dataset or model.header["data"]["name"], split)
    if clouds.class_names != model.class_names:
        raise ValueError(f"--data {data}: its {len(clouds.class_names)} classes are not those {weights} was trained on")
    place = create_fabric(device, "fp32").device
    network, clouds, points = model.network.to(place), clouds.to(place), num_points or model.num_points
    confusion = None
    if model.header["kind"] == CLASSIFIER:
        metrics, confusion = evaluate_classifier(network, clouds, points, batch_size=batch_size, votes=votes)
    elif clouds.part_names != model.header["part_names"]:
        raise ValueError(f"--data {data}: its {len(clouds.part_names)} parts are not those {weights} was trained on")
    else:
        metrics = evaluate_segmenter(network, clouds, points, batch_size=batch_size, votes=votes)
    result = {
        "weights": str(weights),
        "kind": model.header["kind"],
        "data": clouds.source["name"],
        "split": clouds.source["split"],
        "clouds": len(clouds),
        "num_points": min(points, clouds.points.shape[1]),
        "votes": votes,
        "metrics": metrics,
        "class_names": clouds.class_names,
    }
    return result, confusion
