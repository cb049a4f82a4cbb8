"""A gallery of a segmenter's work: test shapes of different classes, coloured by predicted part."""

from __future__ import annotations

from pathlib import Path

import torch

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
    chosen = clouds.select(_one_a_class(clouds, count))
    predicted = []
    for items, logits in predict_logits(model.network, chosen, model.num_points):
        own = category_mask(chosen.label[items], logits.shape[-1], clouds.part_start, clouds.part_count)
        predicted.append(logits.masked_fill(~own, -torch.inf).argmax(-1))
    points = read_clouds(chosen.points, torch.arange(len(chosen)), None, chosen.unit)[:, : model.num_points]
    titles = [clouds.class_names[label] for label in chosen.label]
    labels = list(torch.cat(predicted))
    save_clouds_png(list(points), labels, clouds.part_names, stem.with_suffix(".png"), titles=titles)
    save_clouds_html(list(points), labels, clouds.part_names, stem.with_suffix(".html"), titles=titles)


def _one_a_class(clouds: CloudSet, count: int) -> torch.Tensor:
    """The first cloud of each of `count` classes, or of all classes where there are fewer."""
    present = clouds.label.unique()
    classes = present[torch.linspace(0, len(present) - 1, min(count, len(present))).round().long()]
    return torch.stack([(clouds.label == number).nonzero()[0, 0] for number in classes])
