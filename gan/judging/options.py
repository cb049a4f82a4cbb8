"""Every flag of `scripts/evaluate_gan.py`, and what can be wrong with them before anything is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class JudgeConfig:
    """What to compare with what."""

    data: str
    """the real images: shapes, cifar10, tiny-imagenet, imagenet128, a folder or zip of class/image.jpg, or an .npz file
    of mu and sigma as pytorch-fid writes it (for fid, pytorch_fid and fd)"""
    weights: str | None = None
    """a run's folder, a .safetensors file, or the name of shipped weights"""
    images: Path | None = None
    """instead of weights: a folder or zip of generated images, all squares of one size"""
    metrics: tuple[str, ...] = ("fid", "is", "kid", "prdc")
    """fid, is, kid (torchmetrics' Inception), pytorch_fid (pytorch-fid's), fd, kd (the network of --features), prdc
    (precision, recall, density, coverage), variety (directions that the features span, over those of as many real
    images'), class_accuracy (samples that the classifier finds in their class)"""
    features: Literal["auto", "inception", "pytorch_fid", "lite0", "cifar10net"] = "auto"
    """network of fd, kd, prdc, variety and --neighbours; auto: lite0, for the last three that of the other metrics"""
    classifier: str = "cifar10net"
    """weights of cifar10net: shipped ones, or what scripts/train_features.py wrote"""
    count: int | None = None
    """generated images, of weights classes in turn; 50,000 of weights and all of --images where it is not given"""
    references: int = 0
    """real images; 0: all"""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """what the real images are called in the metrics' names; auto: as the data's name says, else train"""
    truncation: float | None = None
    """bound of the latent coordinates"""
    seed: int = 0
    """seed of the first sample; the next ones have the next seeds"""
    inception_weights: Path | None = None
    """file of Inception's weights (pt_inception-2015-12-05-6726825d.pth)"""
    download: bool = False
    """fetch Inception's weights (95 MB) into torch hub's cache where they are not at hand"""
    save_statistics: Path | None = None
    """also write mu and sigma of the real images to this .npz file; without weights and images only that"""
    neighbours: int = 0
    """draw so many nearest real images beside each of the first samples, and measure the authenticity"""
    neighbours_out: Path = Path("neighbours.png")
    """the PNG of --neighbours"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda"""
    json: Path | None = None
    """also write the values to this file"""


def check_config(config: JudgeConfig) -> None:
    """Raise ValueError or OSError, in one line, for flags that cannot work or contradict each other."""
    if config.weights is not None and config.images is not None:
        raise ValueError(f"--images {config.images}: expected either --weights or --images, got both")
    if config.weights is None and config.images is None and config.save_statistics is None:
        raise ValueError("--weights: expected a run's folder or a file; or --images, or --save-statistics")
    if config.weights is None and (config.truncation is not None or config.seed):
        raise ValueError("--truncation, --seed: expected only with --weights, stored images are as they are")
    if config.weights is None and config.images is None and config.count is not None:
        raise ValueError(f"--count {config.count}: counts generated images, expected --weights or --images with it")
    if config.truncation is not None and config.truncation <= 0:
        raise ValueError(f"--truncation {config.truncation}: expected more than 0")
    if config.references < 0:
        raise ValueError(f"--references {config.references}: expected 0 (all) or more")
    if not 0 <= config.neighbours <= 20:
        raise ValueError(f"--neighbours {config.neighbours}: expected 0 to 20")
    if config.neighbours:
        check_target("--neighbours-out", config.neighbours_out, ".png")
        if config.weights is None and config.images is None:
            raise ValueError(f"--neighbours {config.neighbours}: needs --weights or --images")
    if config.save_statistics is not None:
        check_target("--save-statistics", config.save_statistics, ".npz")
    if config.json is not None:
        check_target("--json", config.json, "")


def check_target(flag: str, path: Path, ending: str) -> None:
    """Raise where a file cannot be written later: another ending, a folder of that name, a folder that is closed."""
    if not path.name.lower().endswith(ending):
        raise ValueError(f"{flag} {path}: expected a file that ends in {ending}")
    if path.is_dir():
        raise ValueError(f"{flag} {path}: is a folder, expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{flag} {path}: its folder cannot be made ({error.strerror})") from error
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{flag} {path}: its folder cannot be written")
