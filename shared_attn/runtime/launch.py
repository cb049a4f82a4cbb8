"""Device and precision of a run, through Lightning Fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("fp32", "bf16")


def choose_device(device: str) -> torch.device:
    """The device of a name: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        ValueError: An unknown device, or CUDA where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no usable CUDA device; expected auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def create_fabric(device: str, precision: str) -> Fabric:
    """A launched Fabric for one process.

    Args:
        device: See :func:`choose_device`.
        precision: "fp32", or "bf16": bfloat16 autocast over float32 weights and inputs.

    Raises:
        ValueError: An unknown device or precision, or CUDA where there is none.
    """
    accelerator = choose_device(device).type
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: expected {' or '.join(PRECISIONS)}")
    import logging

    from lightning.fabric import Fabric

    # It announces the precision on standard error, where a mistake is to be the only line.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if precision == "bf16":
        from shared_attn.runtime.precision import WholeInputs

        fabric = Fabric(accelerator=accelerator, devices=1, plugins=WholeInputs("bf16-mixed", accelerator))
    else:
        fabric = Fabric(accelerator=accelerator, devices=1)
    fabric.launch()
    return fabric
