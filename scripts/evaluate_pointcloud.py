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
    """Clouds at a time; the answers do not depend on it, to the bit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    corruptions: bool = False
    """Also measure a classifier on ModelNet-C's seven corruptions at five levels (drawn anew), turned, and thinned."""
    seed: int = 0
    """Of the corruptions."""
    json: Path | None = None
    """Write the metrics to this file as one JSON object."""
    record: Path | None = None
    """Write a record of the measurement (command, hashes, machine, metrics) to this JSON file."""
    figure: Path | None = None
    """With --corruptions: draw the curves to this PNG; beside the file of --json unless given."""
    confusion: Path | None = None
    """Draw a classifier's confusion matrix to this PNG."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if options.figure is not None and not options.corruptions:
        raise ValueError(f"--figure {options.figure}: draws what --corruptions measures; give both")
    outputs = ("json", "record", "figure", "confusion")
    what = {name: value for name, value in vars(options).items() if name not in outputs}
    from pointcloud.measurement import measure
    from shared_attn.runtime.processes import is_first

    found = measure(**what)
    if not is_first():
        return
    print("\n".join(f"{name} {value:.4f}" for name, value in found.result["metrics"].items()))
    if options.confusion is not None:
        from pointcloud.pictures import save_confusion_matrix

        if found.confusion is None:
            raise ValueError(f"--confusion {options.confusion}: only a classifier has one")
        save_confusion_matrix(found.confusion, found.result["class_names"], options.confusion)
    if options.json is not None:
        from shared_attn.runtime.files import atomic_write

        with atomic_write(options.json, "w") as file:
            json.dump(found.result, file, indent=2)
    if options.record is not None:
        found.write_record(options.record, config=what)
    figure = options.figure or (options.json and options.json.with_suffix(".png"))
    if options.corruptions and figure:
        from pointcloud.robustness_pictures import save_robustness

        save_robustness(found.result["robustness"], figure, title=f"{options.weights} on {found.result['data']}")


if __name__ == "__main__":
    run(main)
