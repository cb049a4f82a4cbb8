"""A gallery of a segmenter's work: test shapes of different classes, coloured by predicted part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pointcloud.augmentation import read_clouds
from pointcloud.clouds import CloudSet
from pointcloud.datasets import load_split
from pointcloud.evaluation import predict_logits
from pointcloud.metrics import category_mask
from pointcloud.models import SEGMENTER, load_model
from pointcloud.pictures import save_clouds_html, save_clouds_png


def draw_test_segmentations(
    weights: str | Path, stem: Path, *, data: str = "shapes", dataset: str = "shapes", count: int = 8
) -> None:
    """Writes `stem`.png and `stem`.html: the first test cloud of each of `count` classes, with its predicted parts.

    Args:
        weights: a run's folder, a file, or the name of shipped weights, of a segmenter.
        stem: the files' common path without suffix.
        data, dataset: as in a training's configuration.
        count: clouds, of classes spread evenly over all there are.

    Raises:
        ValueError: weights or data are missing or do not fit each other.
    """
    model = load_model(weights, SEGMENTER)
    clouds = load_split(data, dataset, "test")
    if clouds.part_names != model.header["part_names"]:
        raise ValueError(f"--weights {weights}: its parts are not those of the data set {dataset}")
    draw_segmentations(model.network, clouds, model.num_points, stem, count=count)


def draw_segmentations(
    network: nn.Module, clouds: CloudSet, num_points: int, stem: Path, *, count: int = 8, truth: bool = False
) -> None:
    """The same for a network and its clouds; with `truth` the true parts stand below in a second row each."""
    chosen = clouds.select(_one_a_class(clouds, count))
    predicted = []
    for items, logits in predict_logits(network, chosen, num_points):
        own = category_mask(chosen.label[items], logits.shape[-1], clouds.part_start, clouds.part_count)
        predicted.append(logits.masked_fill(~own, -torch.inf).argmax(-1))
    everyone = torch.arange(len(chosen), device=chosen.label.device)
    points = list(read_clouds(chosen.points, everyone, None, chosen.unit)[:, :num_points].cpu())
    titles, labels = [clouds.class_names[label] for label in chosen.label], list(torch.cat(predicted).cpu())
    if truth:
        assert chosen.part_label is not None
        points, labels = points * 2, labels + list(chosen.part_label[:, :num_points].cpu())
        titles += [f"{title}, true parts" for title in titles]
    columns = len(chosen) if truth else 4
    save_clouds_png(points, labels, clouds.part_names, stem.with_suffix(".png"), titles=titles, columns=columns)
    save_clouds_html(points, labels, clouds.part_names, stem.with_suffix(".html"), titles=titles)


def _one_a_class(clouds: CloudSet, count: int) -> torch.Tensor:
    """The first cloud of each of `count` classes, or of all classes where there are fewer."""
    present = clouds.label.unique()
    classes = present[torch.linspace(0, len(present) - 1, min(count, len(present))).round().long()]
    return torch.stack([(clouds.label == number).nonzero()[0, 0] for number in classes])
