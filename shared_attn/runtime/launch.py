"""Device and precision of a run, through Lightning Fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.precision.precision import Precision

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


def _create_autocast(device: str) -> Precision:
    """Autocast that leaves a network's inputs as they are, and needs no backward of its own.

    Lightning's own rounds the inputs to bfloat16 too. Coordinates must not be: neighbours and farthest points would be
    chosen among points moved by up to 1/512 of their size, and not be those that evaluation chooses. It also allows a
    network's output to be differentiated by `fabric.backward` alone, for float16's scaler, which bfloat16 does without;
    a gradient penalty differentiates before that.
    """
    from lightning.fabric.plugins.precision.precision import Precision

    class Autocast(Precision):
        precision = "bf16-mixed"

        def forward_context(self) -> Any:
            return torch.autocast(device, dtype=torch.bfloat16)

        def convert_output(self, data: Any) -> Any:
            return data.float() if isinstance(data, torch.Tensor) and data.is_floating_point() else data

    return Autocast()
