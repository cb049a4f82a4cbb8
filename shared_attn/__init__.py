"""One core of attention variants behind one call.

    attention = create_attention("external", dim=256, memory_size=64)     # an nn.Module
    y = attention(x, grid=(H, W), mask=None)    # x, y: (B, N, C)

A new variant is a new file with a subclass of `shared_attn.attention.Attention` and one line in ATTENTION.
"""

from __future__ import annotations

from typing import Any

from shared_attn.attention import Attention, check_options
from shared_attn.covariance import CrossCovarianceAttention
from shared_attn.double import DoubleAttention
from shared_attn.external import ExternalAttention, MultiHeadExternalAttention
from shared_attn.ham import HamAttention
from shared_attn.hilo import HiLoAttention
from shared_attn.identity import NoAttention
from shared_attn.kernels import external as _external  # noqa: F401  # registers the operator, for saved programs too
from shared_attn.linear import LinearAttention
from shared_attn.offset import OffsetAttention
from shared_attn.performer import PerformerAttention
from shared_attn.quadtree import QuadTreeAttentionA, QuadTreeAttentionB
from shared_attn.sagan import SaganAttention
from shared_attn.softmax import SelfAttention, SimplifiedSelfAttention
from shared_attn.spatial_reduction import SpatialReductionAttention
from shared_attn.window import WindowAttention

__all__ = ["ATTENTION", "Attention", "create_attention", "list_attentions"]

ATTENTION: dict[str, type[Attention]] = {
    "external": ExternalAttention,
    "multihead_external": MultiHeadExternalAttention,
    "self": SelfAttention,
    "simplified_self": SimplifiedSelfAttention,
    "sagan": SaganAttention,
    "offset": OffsetAttention,
    "cross_covariance": CrossCovarianceAttention,
    "hilo": HiLoAttention,
    "quadtree_a": QuadTreeAttentionA,
    "quadtree_b": QuadTreeAttentionB,
    "spatial_reduction": SpatialReductionAttention,
    "window": WindowAttention,
    "linear": LinearAttention,
    "performer": PerformerAttention,
    "double": DoubleAttention,
    "ham": HamAttention,
    "none": NoAttention,
}


def list_attentions() -> list[str]:
    """The names that `create_attention` knows."""
    return list(ATTENTION)


def create_attention(name: str, dim: int, **options: Any) -> Attention:
    """Makes an attention variant by name.

    Args:
        name: one of `list_attentions()`.
        dim: channels of the tokens.
        options: the variant's own keywords, for example memory_size or num_heads.

    Raises:
        ValueError: for an unknown name (the message lists those there are), an option the variant has not (the message
            lists those it has), or a value it cannot take.
    """
    if name not in ATTENTION:
        raise ValueError(f"unknown attention {name!r}; there are: {', '.join(ATTENTION)}")
    check_options(f"attention {name!r}", ATTENTION[name], options, given=("dim",))
    return ATTENTION[name](dim, **options)
