"""No attention: the baseline that every table needs."""

from __future__ import annotations

from torch import Tensor

from shared_attn.attention import Attention

__all__ = ["NoAttention"]


class NoAttention(Attention):
    """Returns its tokens (zero where masked); has no parameters."""

    name = "none"

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, _mask: Tensor | None, /) -> Tensor:
        return x
