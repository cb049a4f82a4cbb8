"""What test_pointcloud_processes.py lets torchrun start: trainings in float64."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pointcloud import training
from pointcloud.models import create_model
from pointcloud.presets import Config


def widen(_network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The points in float64; categories as they are."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def create_wide_model(*arguments: Any) -> nn.Module:
    """The network in float64: what rounding leaves then is far below what a wrong step would do."""
    network = create_model(*arguments).double()
    network.register_forward_pre_hook(widen)
    return network


def train_exactly(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """One run a recipe."""
    training.create_model = create_wide_model
    try:
        for name, changes in runs.items():
            options = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
            training.train(Config(**{**options, "out": folder / name}))
    finally:
        training.create_model = create_model


if __name__ == "__main__":
    train_exactly(Path(sys.argv[1]), json.loads(sys.argv[2]))
