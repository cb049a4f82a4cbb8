"""Measures saved weights on a split of a data set: metrics, robustness, and what they were measured on."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from pointcloud.clouds import CloudSet
from pointcloud.datasets import Split, load_split
from pointcloud.evaluation import evaluate_classifier, evaluate_segmenter
from pointcloud.models import CLASSIFIER, LoadedModel, load_model
from pointcloud.reporting import count_cost
from pointcloud.robustness import measure_robustness
from shared_attn.complexity import count_parameters
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.processes import Share, first_on_machine, outlive_the_others
from shared_attn.runtime.records import hash_file, write_record


@dataclasses.dataclass(frozen=True)
class Measurement:
    """`result` is JSON-able; `confusion` (K, K) is a classifier's; the rest is what a record needs."""

    result: dict[str, Any]
    confusion: Tensor | None
    model: LoadedModel
    clouds: CloudSet
    seconds: float

    def write_record(self, path: Path, *, config: dict[str, Any]) -> None:
        """Writes the measurement as evidence, with the hashes of the weights and of the data."""
        network, result = self.model.network, self.result
        files = {Path(file).name: hash_file(file) for file in self.clouds.source["files"]}
        write_record(
            path,
            name=f"{self.model.header['name']} measured on {result['data']}",
            kind="evaluation",
            config={**config, "weights_sha256": hash_file(self.model.path)},
            data={"name": result["data"], "split": f"{result['clouds']} clouds, {result['split']}", "files": files},
            seeds=[config.get("seed", 0)],
            metrics=result["metrics"],
            parameters=count_parameters(network.requires_grad_(True)),
            multiply_adds=count_cost(network, result["num_points"]),
            seconds=self.seconds,
            device=self.clouds.label.device.type,
            tables={"robustness": [result["robustness"]]} if "robustness" in result else None,
            note=result.get("robustness", {}).get("protocol", ""),
        )


@outlive_the_others
def measure(
    weights: str,
    data: Any,
    *,
    dataset: str = "",
    split: Split = "test",
    votes: int = 1,
    num_points: int = 0,
    batch_size: int = 32,
    device: str = "auto",
    corruptions: bool = False,
    seed: int = 0,
) -> Measurement:
    """Metrics of weights on a split, with what they were measured on; processes that torchrun started share the clouds.

    Args:
        weights: see `pointcloud.models.load_model`; data, dataset: see `pointcloud.datasets.load_split`, which takes
            names, paths and torch_geometric's data sets.
        votes: see `pointcloud.evaluation.predict_logits`; num_points: 0 for as many as in training.
        corruptions: also what corruptions, turns and fewer points cost, see `pointcloud.robustness`; seed: of these.

    Raises:
        ValueError, FileNotFoundError: weights or data that are not there or do not fit each other, or a wrong number.
    """
    begin = time.perf_counter()
    numbers = {"votes": (votes, 1), "num-points": (num_points, 0), "batch-size": (batch_size, 1), "seed": (seed, 0)}
    for flag, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")
    model = load_model(weights)
    if corruptions and model.header["kind"] != CLASSIFIER:
        raise ValueError(f"--corruptions: needs a classifier; {weights} holds a {model.header['kind']}")
    fabric = create_fabric(device, "fp32", several=True)
    place, share = fabric.device, Share(fabric.global_rank, fabric.world_size)
    with first_on_machine(fabric.local_rank):
        clouds = load_split(data, dataset or model.header["data"]["name"], split)
    check_fit(clouds, model, data, weights)
    network, clouds, points = model.network.to(place), clouds.to(place), num_points or model.num_points
    how: dict[str, Any] = {"batch_size": batch_size, "votes": votes, "share": share}
    confusion, robustness = None, {}
    if model.header["kind"] == CLASSIFIER:
        metrics, confusion = evaluate_classifier(network, clouds, points, **how)
    else:
        metrics = evaluate_segmenter(network, clouds, points, **how)
    if corruptions:
        report = measure_robustness(network, clouds, points, seed=seed, **how)
        metrics, robustness = {**metrics, **report.pop("metrics")}, {"robustness": report}
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
        **robustness,
    }
    return Measurement(result, confusion, model, clouds, time.perf_counter() - begin)


def check_fit(clouds: CloudSet, model: LoadedModel, data: Any, weights: str) -> None:
    """Refuses data whose classes or parts are not those of the weights."""
    if clouds.class_names != model.class_names:
        raise ValueError(f"--data {data}: its {len(clouds.class_names)} classes are not those {weights} was trained on")
    if model.header["kind"] != CLASSIFIER and clouds.part_names != model.header["part_names"]:
        raise ValueError(f"--data {data}: its {len(clouds.part_names)} parts are not those {weights} was trained on")
