"""Stateless randomness: every random number follows from (seed, what it is for, when), so that nothing has to be saved.

A resumed run, another number of workers, or another order of evaluation draws the same numbers.
"""

from __future__ import annotations

import hashlib

import torch


def mix_seed(*parts: int | str) -> int:
    """Hashes the parts, in order, to one seed in [0, 2^63): the same on every machine and in every process."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def create_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose, for example ``create_generator(seed, "order", epoch)``."""
    return torch.Generator(device=device).manual_seed(mix_seed(*parts))


def seed_step(*parts: int | str) -> None:
    """Seeds torch's global generators; called before each training step, so dropout needs no saved state."""
    torch.manual_seed(mix_seed(*parts))
