"""Reproducible choices: every number of the data set follows from a seed, on every machine."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import torch

T = TypeVar("T")


def hash_seed(*parts: int | str) -> int:
    """62-bit seed that depends on the parts alone, unlike ``hash`` stable between processes."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def create_generator(*parts: int | str) -> torch.Generator:
    """CPU generator (Mersenne twister) seeded with :func:`hash_seed` of the parts."""
    return torch.Generator().manual_seed(hash_seed(*parts))


class Draw:
    """A stream of random choices for one shape.

    Only float64 uniforms of the serial CPU generator are used: normal deviates take another path on machines with
    other vector units, these do not.
    """

    def __init__(self, *seed: int | str) -> None:
        self._generator = create_generator(*seed)
        self._numbers: list[float] = []

    def _next(self) -> float:
        if not self._numbers:
            self._numbers = torch.rand(64, dtype=torch.float64, generator=self._generator).tolist()
        return self._numbers.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number between low and high."""
        return low + (high - low) * self._next()

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + min(int(self._next() * (high - low + 1)), high - low)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._next() < probability

    def choice(self, *options: T) -> T:
        """One of the options; name one twice to make it likelier."""
        return options[self.integer(0, len(options) - 1)]
