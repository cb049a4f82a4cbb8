"""Wall-clock time and memory of the variants, on square grids.

Competitors take turns in one process, so that their ratio means something on a machine that is busy with other work.

Legend: B batch, N tokens, C channels, H W grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.complexity import attention_cost
from shared_attn.memory import measure_peak_bytes

__all__ = ["VariantTiming", "check_sizes", "forward_pass", "time_in_turns", "time_variants", "training_step"]


@dataclass(frozen=True)
class VariantTiming:
    """One variant at one size; times and memory are None where it was skipped for its cost.

    `peak_mb` is the most memory (MB = 1e6 bytes) of one forward + backward, see `memory.measure_peak_bytes`.
    """

    name: str
    dim: int
    tokens: int
    batch: int
    parameters: int
    multiply_adds: int
    forward_ms: float | None = None
    training_ms: float | None = None
    peak_mb: float | None = None

    HEAD: ClassVar[str] = (
        f"{'attention':20}{'channels':>9}{'tokens':>8}{'parameters':>12}{'G mult-adds':>13}"
        f"{'forward':>10}{'+ backward':>12}{'peak':>10}  ms, MB"
    )

    def __str__(self) -> str:
        """A line of the table under HEAD."""
        measured = (self.forward_ms, self.training_ms, self.peak_mb)
        forward, training, peak = (f"{value:.2f}" if value is not None else "skipped" for value in measured)
        cost = f"{self.parameters:12,}{self.multiply_adds / 1e9:13.3f}"
        return f"{self.name:20}{self.dim:9}{self.tokens:8}{cost}{forward:>10}{training:>12}{peak:>10}"


def time_variants(
    names: Sequence[str],
    dims: Sequence[int],
    sides: Sequence[int],
    *,
    batch: int = 1,
    repeats: int = 5,
    limit: float = float("inf"),
    dtype: torch.dtype = torch.float32,
    device: torch.device,
) -> Iterator[VariantTiming]:
    """Times each variant on square grids, forward in eval mode and forward + backward in training mode.

    Args:
        names: of the variants; dims: channels C; sides: H = W of the grids.
        limit: a variant with more multiply-adds a forward than this is listed with its cost but not run.
        dtype: of the weights and the tokens.

    Raises:
        ValueError: at once, for an unknown name or channels that a variant cannot take.
    """
    sizes = [(name, dim, side) for dim in dims for side in sides for name in names]
    costs = [attention_cost(name, dim, (side, side)) for name, dim, side in sizes]

    def measure() -> Iterator[VariantTiming]:
        for (name, dim, side), cost in zip(sizes, costs, strict=True):
            row = VariantTiming(name, dim, side * side, batch, cost.parameters, batch * cost.multiply_adds)
            if row.multiply_adds <= limit:
                attention = create_attention(name, dim).to(device, dtype)
                x = torch.randn(batch, side * side, dim, device=device, dtype=dtype)
                forward_ms = _median_ms(forward_pass(attention.eval(), x, (side, side)), repeats, device)
                step = training_step(attention.train(), x, (side, side))
                training_ms = _median_ms(step, repeats, device)
                peak_mb = measure_peak_bytes(step, device) / 1e6
                row = replace(row, forward_ms=forward_ms, training_ms=training_ms, peak_mb=peak_mb)
            yield row

    return measure()


def time_in_turns(
    competitors: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each function, after one warm-up; every round calls each of them once."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for repeat in range(repeats + 1):
        for name, function in competitors.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if repeat > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def check_sizes(**sizes: tuple[int, int]) -> None:
    """Refuses sizes below the least that can be timed.

    Args:
        sizes: by the flag's name without dashes in front, a value and the least it may be.

    Raises:
        ValueError: for one below it.
    """
    for flag, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"--{flag} {value}: expected at least {least}")


def _median_ms(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    return time_in_turns({"it": function}, repeats, device)["it"]


def forward_pass(module: Callable[..., Tensor], *inputs: object) -> Callable[[], object]:
    """A function to time: forward without gradients."""

    def run() -> None:
        with torch.inference_mode():
            module(*inputs)

    return run


def training_step(module: Callable[..., Tensor], x: Tensor, *others: object) -> Callable[[], object]:
    """A function to time: forward and backward, with gradients of the parameters and of x, as inside a network."""
    x = x.detach().requires_grad_()
    grad = torch.randn_like(x)

    def run() -> None:
        x.grad = None
        if isinstance(module, nn.Module):
            module.zero_grad(set_to_none=True)
        torch.autograd.backward(module(x, *others), grad)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
