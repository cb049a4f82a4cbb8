"""Measure a trained point network on the test split of a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line import parse, run


@dataclass(frozen=True)
class Options:
    weights: str
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    data: str
    """shapes, a folder of .npz files or of CLASS/test/*.off, or one .npz file."""
    dataset: str = ""
    """Which data set of that folder; the one the weights were trained on where it is not given."""
    split: Literal["test", "train"] = "test"
    """Which split."""
    votes: int = 1
    """Views of each cloud whose answers are averaged: itself and random scalings; the metrics' names say so."""
    num_points: int = 0
    """Points of each cloud; 0: as many as in training."""
    batch_size: int = 32
    """Clouds at a time; the answers do not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: Path | None = None
    """Write the metrics to this file as one JSON object."""
    confusion: Path | None = None
    """Draw a classifier's confusion matrix to this PNG."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    from pointcloud.evaluation import evaluate_file

    result, confusion = evaluate_file(
        options.weights,
        options.data,
        dataset=options.dataset,
        split=options.split,
        votes=options.votes,
        num_points=options.num_points,
        batch_size=options.batch_size,
        device=options.device,
    )
    if options.confusion is not None:
        from pointcloud.pictures import save_confusion_matrix

        if confusion is None:
            raise ValueError(f"--confusion {options.confusion}: only a classifier has one")
        save_confusion_matrix(confusion, result["class_names"], options.confusion)
    if options.json is not None:
        from shared_attn.runtime.files import atomic_write

        with atomic_write(options.json, "w") as file:
            json.dump(result, file, indent=2)
    print("\n".join(f"{name} {value:.4f}" for name, value in result["metrics"].items()))


if __name__ == "__main__":
    run(main)
