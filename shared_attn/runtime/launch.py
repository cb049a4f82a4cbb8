"""Device and precision of a run, through Lightning Fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.precision.amp import MixedPrecision

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
    plugins: Any = [_create_autocast(accelerator)] if precision == "bf16" else []
    fabric = Fabric(accelerator=accelerator, devices=1, plugins=plugins)
    fabric.launch()
    return fabric


def _create_autocast(device: str) -> MixedPrecision:
    """Autocast that leaves a network's inputs as they are.

    Lightning's own rounds them to bfloat16 too. Coordinates must not be: neighbours and farthest points would be
    chosen among points moved by up to 1/512 of their size, and not be those that evaluation chooses.
    """
    from lightning.fabric.plugins.precision.amp import MixedPrecision

    class WholeInputs(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return WholeInputs("bf16-mixed", device)
