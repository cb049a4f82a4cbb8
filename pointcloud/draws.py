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


def precise_normal(items: Tensor, epochs: Tensor, count: int, *purpose: int | str) -> Tensor:
    """(B, count) float64, standard normal, from the cosines alone.

    In float32 the last bit of a logarithm or cosine can depend on where in a vector register its number stood, so on
    the batch; in float64 such a bit vanishes when the result is rounded.
    """
    radius = (-2 * torch.log1p(-uniform(items, epochs, count, *purpose, "radius").double())).sqrt()
    return radius * (math.tau * uniform(items, epochs, count, *purpose, "angle").double()).cos()


def beta(items: Tensor, epochs: Tensor, concentration: float, *purpose: int | str) -> Tensor:
    """(B,) float32, Beta(c, c): the share of one gamma variable in the sum of two."""
    first, second = (_gamma(items, epochs, concentration, *purpose, place) for place in (0, 1))
    return (first / (first + second).clamp_min(torch.finfo(torch.float64).tiny)).float()


def _gamma(items: Tensor, epochs: Tensor, shape: float, *purpose: int | str, tries: int = 16) -> Tensor:
    """(B,) float64, gamma-distributed (Marsaglia and Tsang): of `tries` candidates the first that is accepted.

    Each is accepted with a probability above 0.95, so that none is has a probability below 1e-20. A shape below 1 is
    raised by 1 and the variable multiplied by u^(1 / shape).
    """
    d = shape + 2 / 3 if shape < 1 else shape - 1 / 3
    x = precise_normal(items, epochs, tries, *purpose, "candidate")
    u = uniform(items, epochs, tries, *purpose, "accept").double()
    v = (1 + x / math.sqrt(9 * d)).pow(3)
    good = (v > 0) & ((1 - u).log() < 0.5 * x.square() + d * (1 - v + v.clamp_min(1e-300).log()))
    found = d * v.gather(1, good.int().argmax(1, keepdim=True)).squeeze(1)
    if shape < 1:
        found = found * (1 - uniform(items, epochs, 1, *purpose, "power").double().squeeze(1)).pow(1 / shape)
    return found


def _mix(z: Tensor) -> Tensor:
    z = z + GOLDEN
    z = (z ^ _shift_right(z, 30)) * FIRST
    z = (z ^ _shift_right(z, 27)) * SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: the sign bit does not spread."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
