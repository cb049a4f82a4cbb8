"""How long a training step takes: this package's form against the original's, in one process, on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.losses import smoothed_cross_entropy
from pointcloud.original import load_original
from pointcloud.published import create_published_twin
from pointcloud.step_parts import REST, marked_parts
from shared_attn.benchmark import call_in_new_process, time_in_turns
from shared_attn.complexity import count_multiply_adds
from shared_attn.memory import measure_peak_bytes
from shared_attn.runtime.compilation import compile_network
from shared_attn.runtime.host_memory import keep_freed_memory
from shared_attn.step_clock import PartClock, product_rate

NETWORKS = {"pct": "offset", "eat": "external"}


@dataclass(frozen=True)
class StepTiming:
    """A training step (forward, backward, SGD) of one network.

    Seconds are medians. `published` is the same network in the published order of operations, `original` PCT_Pytorch's
    own code from a checkout (for EAT too: there is no original EAT), both in fp32; all with freed memory kept in the
    process, `shipped` without. The floor is the time of the step's matrix products alone, at the rate that a large
    product reaches on the same device in the same precision.
    """

    name: str
    precision: str
    seconds: float
    clouds_per_second: float
    published_seconds: float
    speedup: float
    """Published over this package's."""
    largest_difference: float
    """Of the logits of both in training mode, relative to their standard deviation."""
    original_seconds: float | None
    original_speedup: float | None
    peak_mb: float
    """Most memory of tensors in a step at one time, in 1e6 bytes."""
    published_peak_mb: float
    original_peak_mb: float | None
    floor_seconds: float
    floor_fraction: float
    """Floor over seconds: 1 is a step of nothing but products."""
    product_gflops: float
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of each part of the step, forward and backward together."""
    shipped_seconds: float | None = None
    """Of the original's code as its users run it: in a process of its own, where freed memory goes back to the system.
    Timed by itself, not in turns with the others."""
    shipped_speedup: float | None = None

    HEAD: ClassVar[str] = (
        f"{'network':12}{'s a step':>10}{'clouds/s':>10}{'published':>11}{'x':>7}{'original':>10}{'x':>7}"
        f"{'as shipped':>12}{'x':>7}"
        f"{'peak MB':>9}{'published':>11}{'original':>10}{'% of floor':>12}"
    )

    def __str__(self) -> str:
        """Lines under HEAD: the numbers, then the shares."""
        own = [
            f"{self.seconds:>10.3f}{self.clouds_per_second:>10.1f}{self.published_seconds:>11.3f}{self.speedup:>7.2f}"
        ]
        own += [f"{_or_dash(self.original_seconds, 3):>10}{_or_dash(self.original_speedup, 2):>7}"]
        own += [f"{_or_dash(self.shipped_seconds, 3):>12}{_or_dash(self.shipped_speedup, 2):>7}"]
        own += [f"{self.peak_mb:>9.0f}{self.published_peak_mb:>11.0f}{_or_dash(self.original_peak_mb, 0):>10}"]
        own += [f"{100 * self.floor_fraction:>12.0f}"]
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in self.shares.items())
        return f"{self.name + ' ' + self.precision:12}{''.join(own)}\n    {shares}"

    @property
    def metrics(self) -> dict[str, float]:
        """What a record holds, by names with network and precision."""
        names = (
            "seconds",
            "clouds_per_second",
            "speedup",
            "original_speedup",
            "shipped_speedup",
            "peak_mb",
            "floor_fraction",
        )
        found = {name: getattr(self, name) for name in names}
        return {f"{self.name}_{self.precision}_{k}": v for k, v in found.items() if v is not None}


def time_training_steps(
    *,
    batch_size: int = 32,
    num_points: int = 1024,
    repeats: int = 3,
    threads: int = 0,
    precision: str = "fp32",
    device: torch.device | None = None,
    compiled: bool = False,
    original: Path | None = None,
) -> Iterator[StepTiming]:
    """Times a step of PCT and EAT, in this package's form and in the published one, and the original's.

    All hold the same weights (PCT's); they take turns, so that a busy machine slows all of them alike.

    Args:
        precision: of this package's form, fp32 or bf16; the others are always timed in fp32.
        threads: CPU threads; 0 leaves them as they are.
        compiled: this package's form goes through torch.compile.
        original: folder of a checkout of PCT_Pytorch.
    """
    for flag, value, least in (("batch-size", batch_size, 2), ("num-points", num_points, 1), ("repeats", repeats, 1)):
        if value < least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")
    device = device or torch.device("cpu")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    points, label = (tensor.to(device) for tensor in _create_batch(batch_size, num_points))
    models = {name: _create_network(name).to(device) for name in NETWORKS}
    rival = None if original is None else load_original(original, models["pct"]).to(device)
    shipped = None
    if original is not None and device.type == "cpu":
        threads = torch.get_num_threads()
        shipped = call_in_new_process(_time_shipped, original, batch_size, num_points, repeats, threads)
    for name, model in models.items():
        timing = _time(name, model, rival, points, label, repeats, precision, compiled)
        ratio = None if shipped is None else shipped / timing.seconds
        yield replace(timing, shipped_seconds=shipped, shipped_speedup=ratio)


def _create_batch(batch_size: int, num_points: int) -> tuple[Tensor, Tensor]:
    """Points (B, N, 3) on a sphere and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(batch_size, num_points, 3, generator=generator)
    return points / points.norm(dim=-1, keepdim=True), torch.randint(40, (batch_size,), generator=generator)


def _create_network(name: str) -> PointClassifier:
    torch.manual_seed(0)
    return PointClassifier(40, attention=NETWORKS[name], dropout=0.0)


def _time_shipped(original: Path, batch_size: int, num_points: int, repeats: int, threads: int) -> float:
    """Median seconds of a step of the original's code in this process, as it is."""
    torch.set_num_threads(threads)
    points, label = _create_batch(batch_size, num_points)
    step = create_step(load_original(original, _create_network("pct")), points, label, "fp32")
    return time_in_turns({"original": step}, repeats, points.device)["original"] / 1e3


def _time(
    name: str,
    model: PointClassifier,
    original: nn.Module | None,
    points: Tensor,
    label: Tensor,
    repeats: int,
    precision: str,
    compiled: bool,
) -> StepTiming:
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
    return StepTiming(
        name=name,
        precision=precision,
        seconds=own,
        clouds_per_second=len(points) / own,
        published_seconds=seconds["published"],
        speedup=seconds["published"] / own,
        largest_difference=float((logits - expected).abs().max() / expected.std()),
        original_seconds=theirs,
        original_speedup=None if theirs is None else theirs / own,
        peak_mb=peaks["ours"],
        published_peak_mb=peaks["published"],
        original_peak_mb=peaks.get("original"),
        floor_seconds=floor,
        floor_fraction=floor / own,
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


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
