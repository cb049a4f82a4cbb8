"""What some tests need of the machine and of the libraries on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from shared_attn.runtime.launch import multiplies_bfloat16

# The oldest version of torch that is known to export everything; 2.6 to 2.11 prove less about sizes left open.
EXPORTS_ALL = (2, 15)

needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16("cpu"), reason="this processor only imitates bfloat16 products, in minutes for these"
)


@contextmanager
def exporting() -> Iterator[None]:
    """Skips the test where this torch cannot export what the block exports, and is too old to be expected to."""
    try:
        yield
    except (AssertionError, torch._dynamo.exc.UserError, torch.onnx.OnnxExporterError) as error:
        if tuple(map(int, torch.__version__.split(".")[:2])) >= EXPORTS_ALL:
            raise
        pytest.skip(f"torch {torch.__version__} does not export it: {type(error).__name__}")
