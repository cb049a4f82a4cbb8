"""How long a training step takes: this package's form against the original's, in one process, on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.losses import smoothed_cross_entropy
from pointcloud.original import load_original
from pointcloud.published import create_published_twin
from pointcloud.step_parts import REST, marked_parts
from shared_attn.benchmark import check_sizes, time_in_turns
from shared_attn.complexity import count_multiply_adds
from shared_attn.memory import measure_peak_bytes
from shared_attn.runtime.compilation import compile_network
from shared_attn.runtime.host_memory import keep_freed_memory
from shared_attn.step_clock import PartClock, product_rate
from shared_attn.step_timing import StepTiming

NETWORKS = {"pct": "offset", "eat": "external"}


class CloudStepTiming(StepTiming):
    """A training step (forward, backward, SGD) of a classifier. `original` is PCT_Pytorch, for EAT too."""

    UNIT: ClassVar[str] = "clouds"


def time_original(
    original: Path, *, batch_size: int = 32, num_points: int = 1024, repeats: int = 3, threads: int = 0
) -> float:
    """Median seconds of a step of the original's code on the CPU as its users run it: freed memory goes back.

    So it must come first in a process: `time_steps` keeps freed memory from then on, for all it times.

    Args:
        original: folder of a checkout of PCT_Pytorch.
        threads: CPU threads; 0 leaves them as they are.
    """
    check_sizes(**{"batch-size": (batch_size, 2), "num-points": (num_points, 1), "repeats": (repeats, 1)})
    if threads:
        torch.set_num_threads(threads)
    points, label = _create_batch(batch_size, num_points)
    step = create_step(load_original(original, _create_network("pct")), points, label, "fp32")
    return time_in_turns({"original": step}, repeats, points.device)["original"] / 1e3


def time_steps(
    *,
    batch_size: int = 32,
    num_points: int = 1024,
    repeats: int = 3,
    threads: int = 0,
    precision: str = "fp32",
    device: torch.device | None = None,
    compiled: bool = False,
    original: Path | None = None,
    shipped_seconds: float | None = None,
) -> Iterator[CloudStepTiming]:
    """Times a step of PCT and EAT, in this package's form and in the published one, and the original's.

    All hold the same weights (PCT's); they take turns, so that a busy machine slows all of them alike.

    Args:
        precision: of this package's form, fp32 or bf16; the others are always timed in fp32.
        threads: CPU threads; 0 leaves them as they are.
        compiled: this package's form goes through torch.compile.
        original: folder of a checkout of PCT_Pytorch.
        shipped_seconds: what `time_original` measured, for the report.
    """
    check_sizes(**{"batch-size": (batch_size, 2), "num-points": (num_points, 1), "repeats": (repeats, 1)})
    device = device or torch.device("cpu")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    points, label = (tensor.to(device) for tensor in _create_batch(batch_size, num_points))
    models = {name: _create_network(name).to(device) for name in NETWORKS}
    rival = None if original is None else load_original(original, models["pct"]).to(device)
    for name, model in models.items():
        timing = _time(name, model, rival, points, label, repeats, precision, compiled)
        yield replace(timing, shipped_seconds=shipped_seconds)


def _create_batch(batch_size: int, num_points: int) -> tuple[Tensor, Tensor]:
    """Points (B, N, 3) on a sphere and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(batch_size, num_points, 3, generator=generator)
    return points / points.norm(dim=-1, keepdim=True), torch.randint(40, (batch_size,), generator=generator)


def _create_network(name: str) -> PointClassifier:
    torch.manual_seed(0)
    return PointClassifier(40, attention=NETWORKS[name], dropout=0.0)


def _time(
    name: str,
    model: PointClassifier,
    original: nn.Module | None,
    points: Tensor,
    label: Tensor,
    repeats: int,
    precision: str,
    compiled: bool,
) -> CloudStepTiming:
    device, twin = points.device, create_published_twin(model)
    with torch.no_grad():
        logits, expected = model(points), twin(points)
        multiply_adds = count_multiply_adds(model.eval(), points[:1]) * len(points)
    networks: dict[str, nn.Module] = {"ours": model.train(), "published": twin}
    if original is not None:
        networks["original"] = original
    steps = {
        key: create_step(network, points, label, precision if key == "ours" else "fp32")
        for key, network in networks.items()
    }
    shares = _shares(model, steps["ours"], device)
    peaks = {key: measure_peak_bytes(step, device) / 1e6 for key, step in steps.items()}
    if compiled:
        compile_network(model, device)
    seconds = {key: value / 1e3 for key, value in time_in_turns(steps, repeats, device).items()}
    own, theirs = seconds["ours"], seconds.get("original")
    rate = product_rate(device, precision)
    floor = 3 * 2 * multiply_adds / rate  # the backward has two products for each of the forward's
    return CloudStepTiming(
        name=name,
        precision=precision,
        seconds=own,
        items=len(points),
        published_seconds=seconds["published"],
        largest_difference=float((logits - expected).abs().max() / expected.std()),
        original_seconds=theirs,
        peak_mb=peaks["ours"],
        published_peak_mb=peaks["published"],
        original_peak_mb=peaks.get("original"),
        floor_seconds=floor,
        product_gflops=rate / 1e9,
        shares=shares,
    )


def create_step(model: nn.Module, points: Tensor, label: Tensor, precision: str) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(points.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = smoothed_cross_entropy(model(points), label, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _shares(model: PointClassifier, step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Of the parts of a step, by two steps that are watched, after one that warms up."""
    step()
    clock = PartClock(device)
    with marked_parts(model, clock):
        for _ in range(2):
            step()
            clock.mark(REST)
    return clock.shares
