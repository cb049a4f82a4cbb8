"""How long a training step takes: this package's form against the original's, in one process, on the same batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.host_memory import keep_freed_memory
from pointcloud.losses import smoothed_cross_entropy
from pointcloud.published import create_published_twin

NETWORKS = {"pct": "offset", "eat": "external"}


def time_training_steps(
    *, batch_size: int = 32, num_points: int = 1024, repeats: int = 3, threads: int = 0, precision: str = "fp32"
) -> dict[str, dict[str, Any]]:
    """Median seconds of a forward, backward and SGD step of PCT and EAT, in the split and in the published form.

    Both forms hold the same weights; before they are timed their logits are compared, in training mode without dropout.

    Args:
        precision: of the split form, fp32 or bf16; the published form is always timed in fp32.
        threads: CPU threads; 0 leaves them as they are.

    Returns:
        For pct and eat: seconds, published_seconds, speedup (published over split), largest_difference of the logits
        relative to their standard deviation.
    """
    for flag, value, least in (("batch-size", batch_size, 2), ("num-points", num_points, 1), ("repeats", repeats, 1)):
        if value < least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(batch_size, num_points, 3, generator=generator)
    points /= points.norm(dim=-1, keepdim=True)
    label = torch.randint(40, (batch_size,), generator=generator)
    results = {}
    for name, attention in NETWORKS.items():
        torch.manual_seed(0)
        model = PointClassifier(40, attention=attention, dropout=0.0)
        twin = create_published_twin(model)
        logits, expected = model(points).detach(), twin(points).detach()
        steps = [create_step(model, points, label, precision), create_step(twin, points, label, "fp32")]
        seconds, published = measure_alternately(steps, repeats)
        results[name] = {
            "seconds": seconds,
            "published_seconds": published,
            "speedup": published / seconds,
            "largest_difference": float((logits - expected).abs().max() / expected.std()),
        }
    return results


def create_step(model: nn.Module, points: Tensor, label: Tensor, precision: str) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = smoothed_cross_entropy(model(points), label, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_alternately(steps: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each step; they take turns, so that a busy machine slows all of them alike."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
