"""What a timed training step is reported as, for every kind of network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

__all__ = ["StepTiming", "print_timings"]

METRICS = ("seconds", "speedup", "original_speedup", "shipped_speedup", "peak_mb", "floor_fraction")
Timing = TypeVar("Timing", bound="StepTiming")


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """A training step of this package's form of a network, beside others.

    Seconds are medians. `published` is the same network in the published order of operations, `original` the original's
    own code from a checkout, both in fp32; all with freed memory kept in the process. `shipped` is the original's code
    as its users run it, freed memory going back to the system: timed first in the same process, not in turns with the
    others. The floor is the time of the step's products alone, at the rate that a large product reaches
    on the same device in the same precision. Memory is the most that tensors take at one time, in 1e6 bytes.
    """

    UNIT: ClassVar[str] = "items"
    STEP: ClassVar[str] = "a step"

    name: str
    precision: str
    seconds: float
    items: int
    """Of UNIT, in a step."""
    published_seconds: float
    largest_difference: float
    """Of the outputs of both forms in training mode, relative to their standard deviation; in fp32."""
    original_seconds: float | None = None
    shipped_seconds: float | None = None
    peak_mb: float
    published_peak_mb: float
    original_peak_mb: float | None = None
    floor_seconds: float
    product_gflops: float
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of each part of the step, forward and backward."""

    @property
    def items_per_second(self) -> float:
        return self.items / self.seconds

    @property
    def speedup(self) -> float:
        """Published over this package's."""
        return self.published_seconds / self.seconds

    @property
    def original_speedup(self) -> float | None:
        return None if self.original_seconds is None else self.original_seconds / self.seconds

    @property
    def shipped_speedup(self) -> float | None:
        return None if self.shipped_seconds is None else self.shipped_seconds / self.seconds

    @property
    def floor_fraction(self) -> float:
        """Floor over seconds: 1 is a step of nothing but products."""
        return self.floor_seconds / self.seconds

    @classmethod
    def head(cls) -> str:
        """The line above the lines of `str`."""
        ratios = f"{'published':>11}{'x':>7}{'original':>10}{'x':>7}{'as shipped':>12}{'x':>7}"
        memory = f"{'peak MB':>9}{'published':>11}{'original':>10}{'% of floor':>12}"
        return f"{'network':12}{'s ' + cls.STEP:>15}{cls.UNIT + '/s':>10}{ratios}{memory}"

    def __str__(self) -> str:
        """Two lines: the numbers, then the shares."""
        own = [
            f"{self.seconds:>15.3f}{self.items_per_second:>10.1f}{self.published_seconds:>11.3f}{self.speedup:>7.2f}"
        ]
        own += [f"{_or_dash(self.original_seconds, 3):>10}{_or_dash(self.original_speedup, 2):>7}"]
        own += [f"{_or_dash(self.shipped_seconds, 3):>12}{_or_dash(self.shipped_speedup, 2):>7}"]
        own += [f"{self.peak_mb:>9.0f}{self.published_peak_mb:>11.0f}{_or_dash(self.original_peak_mb, 0):>10}"]
        own += [f"{100 * self.floor_fraction:>12.0f}"]
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in self.shares.items())
        return f"{self.name + ' ' + self.precision:12}{''.join(own)}\n    {shares}"

    @property
    def row(self) -> dict[str, Any]:
        """Everything, as a record holds it."""
        ratios = {name: getattr(self, name) for name in METRICS}
        return {**asdict(self), **ratios, f"{self.UNIT}_per_second": self.items_per_second}

    @property
    def metrics(self) -> dict[str, float]:
        """A record's metrics, by names with network and precision."""
        found = {name: self.row[name] for name in (*METRICS, f"{self.UNIT}_per_second")}
        return {f"{self.name}_{self.precision}_{key}": value for key, value in found.items() if value is not None}


def print_timings(timings: Iterable[Timing]) -> list[Timing]:
    """Prints a table's head, and each line as soon as it is measured; returns what it printed."""
    printed: list[Timing] = []
    for timing in timings:
        if not printed:
            print(timing.head())
        print(timing, flush=True)
        printed.append(timing)
    return printed


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
