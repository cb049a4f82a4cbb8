"""Every flag of `scripts/train_features.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ClassifierConfig:
    """One training run of the classifier whose features judge generated images."""

    data: str
    """training images: cifar10, or a folder or zip of class/image.jpg"""
    test: str | None = None
    """images of the same classes to measure the accuracy on, once, at the end; a folder or zip"""
    out: Path = Path("runs/features")
    """folder of the run; running again with the same folder resumes"""
    epochs: int = 10
    """times that every image is shown"""
    batch_size: int = 128
    """images a step"""
    lr: float = 0.1
    """highest rate of the descent; it rises over the first fifth of the run and falls to zero over the rest"""
    weight_decay: float = 5e-4
    """decay of all weights, coupled to the rate"""
    seed: int = 0
    """seed of everything random"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: mixed precision, float32 weights; auto: where the device has instructions for it"""
    fresh: bool = False
    """start over: remove what an earlier run left in the folder"""


FREE_FIELDS = ("data", "test", "out", "device", "fresh")  # they may change when a run is resumed


def check_config(config: ClassifierConfig) -> None:
    """Raise ValueError, in one line, for a value that cannot work."""
    for name in ("epochs", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected at least 1")
    if config.lr <= 0:
        raise ValueError(f"--lr {config.lr}: expected more than 0")
    if config.weight_decay < 0:
        raise ValueError(f"--weight-decay {config.weight_decay}: expected at least 0")
