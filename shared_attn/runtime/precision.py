"""Mixed precision that leaves a network's inputs as they are."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.precision.amp import MixedPrecision


class WholeInputs(MixedPrecision):
    """Autocast over float32 weights, and over float32 inputs.

    Lightning rounds what a network is given to bfloat16 too. Coordinates must not be: neighbours and farthest points
    would be chosen among points moved by up to 1/256, and no longer be those that evaluation chooses.
    """

    def convert_input(self, data: Any) -> Any:
        return data
