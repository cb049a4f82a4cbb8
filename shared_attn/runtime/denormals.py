"""Numbers too small to matter count as zero while a training runs, which keeps it fast on a CPU.

Below 1.2e-38 a float32 is denormal, and a processor takes tens of times as long for it. Trained attention is full of
them, as a softmax of spread logits is: a small GAN's step took a fifth longer after 500 steps than at its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Let denormal numbers be zero on the CPU, where it can do that; the thread's own setting comes back at the end.

    Threads that torch starts meanwhile take it over, and keep it.
    """
    import numpy as np

    for dtype in (np.float16, np.float32, np.float64):
        np.finfo(dtype)  # kept by NumPy, which before 2.0 warned where it finds its smallest numbers to be zero
    before = not (torch.tensor(1e-39) * 1).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
