"""Judge a generator: python scripts/evaluate_gan.py --weights runs/a --data images.zip --metrics fd kd prdc"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import command_line


@dataclass(frozen=True)
class EvaluateConfig:
    """What to compare with what."""

    weights: str
    """a run's folder, a .safetensors file, or the name of shipped weights"""
    data: str
    """the real images: shapes, cifar10, tiny-imagenet, imagenet128, or a folder or zip of class/image.jpg"""
    metrics: tuple[str, ...] = ("fid", "is", "kid", "prdc")
    """fid, is, kid (Inception's features), fd, kd (lite0's), prdc (precision, recall, density, coverage; either)"""
    count: int = 50_000
    """generated images, classes in turn"""
    references: int = 0
    """real images; 0: all"""
    truncation: float | None = None
    """bound of the latent coordinates"""
    seed: int = 0
    """seed of the first sample; the next ones have the next seeds"""
    inception_weights: Path | None = None
    """file of Inception's weights (pt_inception-2015-12-05-6726825d.pth)"""
    device: str = "auto"
    """auto, cpu or cuda"""
    json: Path | None = None
    """also write the values to this file"""


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate, print, and write the values."""
    from gan.judging import judge
    from shared_attn.runtime.files import atomic_write
    from shared_attn.runtime.launch import create_fabric

    report = judge(
        config.weights,
        config.data,
        config.metrics,
        count=config.count,
        references=config.references,
        truncation=config.truncation,
        seed=config.seed,
        inception_weights=config.inception_weights,
        device=create_fabric(config.device, "fp32").device,
    )
    for name, value in report["metrics"].items():
        print(f"{name:40} {value:.6g}")
    if config.json is not None:
        with atomic_write(config.json, "w") as file:
            json.dump(report, file, indent=1)


def main() -> None:
    config = command_line.parse(EvaluateConfig, description=__doc__ or "")
    command_line.run(lambda: evaluate(config))


if __name__ == "__main__":
    main()
