"""What the benchmarks of training steps share: a clock of a step's parts, and the rate of bare matrix products."""

from __future__ import annotations

import time
from collections import defaultdict

import torch
import torch.nn.functional as F

from shared_attn.products import product

__all__ = ["PartClock", "product_rate"]


class PartClock:
    """Adds the time since the last mark to the part that the mark names, once the device has finished it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def mark(self, part: str) -> None:
        now = self.now()
        self.seconds[part] += now - self.last
        self.last = now

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of all that was marked, the largest first."""
        total = sum(self.seconds.values())
        return dict(sorted(((part, value / total) for part, value in self.seconds.items()), key=lambda p: -p[1]))


def product_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product, the best of several."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, width = (4096, 256) if device.type == "cpu" else (2**15, 4096)
    x, weight = (torch.randn(size, width, device=device).to(dtype) for size in (rows, width))
    multiply = product if device.type == "cpu" else F.linear
    best = float("inf")
    for _ in range(8):
        clock = PartClock(device)
        multiply(x, weight)
        best = min(best, clock.now() - clock.last)
    return 2 * rows * width**2 / best
