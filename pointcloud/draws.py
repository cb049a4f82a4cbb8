"""Random numbers that follow from (seed, purpose, epoch, item) alone, for a whole batch at once and on any device.

A counter is hashed (the finaliser of splitmix64) instead of a generator advanced, so what item i gets in epoch e does
not depend on the batch it stands in, on the order, or on the number of workers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shared_attn.runtime.seeding import mix_seed

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, 2^64 / golden ratio, as a signed integer
FIRST, SECOND = -4658895280553007687, -7723592293110705685  # splitmix64's multipliers


def uniform(items: Tensor, epochs: Tensor, count: int, *purpose: int | str) -> Tensor:
    """(B,) items and epochs, int64 -> (B, count) float32 uniform in [0, 1), in steps of 2^-24."""
    counter = torch.arange(1, count + 1, device=items.device)
    key = _mix(_mix(epochs + mix_seed(*purpose)) + items)
    bits = _mix(key.unsqueeze(1) + counter * GOLDEN)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def normal(items: Tensor, epochs: Tensor, count: int, *purpose: int | str) -> Tensor:
    """(B, count) float32, standard normal (Box and Muller)."""
    half = -(-count // 2)
    radius = (-2 * torch.log1p(-uniform(items, epochs, half, *purpose, "radius"))).sqrt()
    angle = 2 * math.pi * uniform(items, epochs, half, *purpose, "angle")
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _mix(z: Tensor) -> Tensor:
    z = z + GOLDEN
    z = (z ^ _shift_right(z, 30)) * FIRST
    z = (z ^ _shift_right(z, 27)) * SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: the sign bit does not spread."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
