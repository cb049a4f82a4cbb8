"""What some tests need of the machine."""

from __future__ import annotations

import pytest

from shared_attn.runtime.launch import multiplies_bfloat16

needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16("cpu"), reason="this processor only imitates bfloat16 products, in minutes for these"
)
