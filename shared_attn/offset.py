"""PCT's offset attention (arXiv 2012.09688, section 3.3) and the residual layer it is part of.

Legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_options
from shared_attn.functional import double_normalised_attention
from shared_attn.token_norm import normalise_tokens

__all__ = ["DoubleNormalisedAttention", "OffsetAttention", "OffsetBlock", "OffsetForm", "create_offset_layer"]

OffsetForm = Literal["offset", "offset_query", "plain"]


class DoubleNormalisedAttention(Attention):
    """The attention inside PCT's layer: queries and keys share one map C -> C // 4; softmax, then L1, over either axis.

    The softmax runs over the output tokens and the L1 over the sources, with no 1 / sqrt(d): the order of the released
    code, which every published result has. See `functional.double_normalised_attention`.

    Args:
        dim: channels C, at least 4.
    """

    name = "offset"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        if dim < 4:
            raise ValueError(
                f"attention {self.name!r}: dim must be at least 4, because queries have dim // 4; got {dim}"
            )
        self.query_key = nn.Linear(dim, dim // 4, bias=False)
        self.value = nn.Linear(dim, dim)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        return double_normalised_attention(self.query_key(x), self.value(x), mask=mask)


class OffsetBlock(Attention):
    """PCT's residual layer around any attention r: x + ReLU(BN(W (x - r(x)))), or with W r(x) where `form` is "plain".

    Batch statistics are taken over the real tokens of the whole batch.

    Args:
        attention: a module with the one call of this package, on `dim` channels.
        dim: channels C.
        form: "offset" or "plain".
    """

    name = "offset block"

    def __init__(self, attention: nn.Module, dim: int, form: Literal["offset", "plain"] = "offset") -> None:
        super().__init__(dim)
        if form not in ("offset", "plain"):
            raise ValueError(f"offset block: form must be offset or plain; got {form!r}")
        self.form = form
        self.attention = attention
        self.transform = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        r = self.attention(x, grid, mask)
        hidden = self.transform(x - r if self.form == "offset" else r)
        return x + F.relu(normalise_tokens(self.norm, hidden, mask))


class OffsetAttention(OffsetBlock):
    """PCT's offset attention as published: the whole layer, its residual included.

    The other variants return the attention alone. To put one of them in this layer's place, wrap it in OffsetBlock, or
    call `create_offset_layer`.
    """

    name = "offset"

    def __init__(self, dim: int) -> None:
        super().__init__(DoubleNormalisedAttention(dim), dim)


def create_offset_layer(name: str, dim: int, form: OffsetForm = "offset", **options: Any) -> OffsetBlock:
    """An attention layer of a point cloud transformer: PCT's with name "offset", EAT's with name "external".

    Args:
        name: a variant's name. "offset" is PCT's own attention map; "none" is r = 0, so x + LBR(x) whatever the form.
        dim: channels C.
        form: with LBR = ReLU(BN(W .)), "offset" is x + LBR(x - r), "plain" is x + LBR(r); "offset_query" is "offset"
            with a map C -> C (with bias) before the key memory, for external attention alone.
        options: the variant's, but the name `form` is this layer's: external attention takes its own form from it.

    Raises:
        ValueError: for an unknown name, form or option.
    """
    from shared_attn import create_attention  # the dictionary of variants holds this file's OffsetAttention

    if form not in get_args(OffsetForm):
        raise ValueError(f"offset layer: form must be one of {', '.join(get_args(OffsetForm))}; got {form!r}")
    if form == "offset_query":
        if name != "external":
            raise ValueError(f"offset layer: form 'offset_query' is for attention 'external' alone; got {name!r}")
        core = create_attention(name, dim, **{"form": "query", "query_bias": True, **options})
        return OffsetBlock(core, dim)
    if name == "offset":
        check_options("attention 'offset'", DoubleNormalisedAttention, options, given=("dim",))
        return OffsetBlock(DoubleNormalisedAttention(dim), dim, form)
    core = create_attention(name, dim, **options)
    return OffsetBlock(core, dim, "plain" if name == "none" else form)
