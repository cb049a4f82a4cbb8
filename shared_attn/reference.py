"""Weights that were published for the original implementations, in this project's modules.

The modules compute the whole original ones (residual and activation included) on (B, N, C) with a grid. Written from
the papers and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared_attn.attention import check_options
from shared_attn.external import ExternalAttentionBlock, MultiHeadExternalAttention
from shared_attn.feature_map import GatedAttention
from shared_attn.offset import OffsetAttention
from shared_attn.sagan import SaganAttention

__all__ = ["list_references", "load_reference"]

# An original parameter's name -> (this project's name, how many dimensions of size 1 the original has at its end).
Names = dict[str, tuple[str, int]]


def load_reference(source: str, state_dict: Mapping[str, Any], **meta: Any) -> nn.Module:
    """A module of this project in eval mode with weights that an original implementation saved.

    Args:
        source: one of `list_references()`.
        state_dict: the original's parameters and buffers by their original names, tensors or numpy arrays.
        meta: the original's constructor arguments. eanet.external: channels, memory_size; eanet.multi_head: dim,
            num_heads; studiogan.self_attention: channels; pct.offset: channels.

    Returns:
        A module called as the variants are, `module(x, grid=None, mask=None)`, (B, N, C) in and out.

    Raises:
        ValueError: for an unknown source or constructor argument, and for weights that are missing, unexpected or of
            another shape; the message names them.
    """
    if source not in _SOURCES:
        raise ValueError(f"unknown source {source!r}; there are: {', '.join(_SOURCES)}")
    create, names = _SOURCES[source]
    check_options(f"source {source!r}", create, meta)
    module = create(**meta)
    _fill(module, state_dict, names, source)
    return module.eval()


def list_references() -> list[str]:
    """The sources that `load_reference` knows."""
    return list(_SOURCES)


def _eanet_external(channels: int, memory_size: int = 64) -> nn.Module:
    return ExternalAttentionBlock(channels, memory_size, eps=1e-9)


def _eanet_multi_head(dim: int, num_heads: int = 8) -> nn.Module:
    return MultiHeadExternalAttention(dim, num_heads, memory_size=64, expansion=4, eps=1e-9)


def _studiogan_self_attention(channels: int) -> nn.Module:
    return GatedAttention(SaganAttention(channels))


def _pct_offset(channels: int) -> nn.Module:
    return OffsetAttention(channels)


def _batch_norm(original: str, ours: str) -> Names:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{original}.{kind}": (f"{ours}.{kind}", 0) for kind in kinds}


_SOURCES: dict[str, tuple[Callable[..., nn.Module], Names]] = {
    "eanet.external": (
        _eanet_external,
        {
            "conv1.weight": ("attention.query.weight", 2),
            "conv1.bias": ("attention.query.bias", 0),
            "linear_0.weight": ("attention.key_memory.weight", 1),
            "linear_1.weight": ("attention.value_memory.weight", 1),
            "conv2.0.weight": ("attention.output.weight", 2),
            **_batch_norm("conv2.1", "norm"),
        },
    ),
    "eanet.multi_head": (
        _eanet_multi_head,
        {
            "trans_dims.weight": ("query.weight", 0),
            "trans_dims.bias": ("query.bias", 0),
            "linear_0.weight": ("key_memory.weight", 0),
            "linear_0.bias": ("key_memory.bias", 0),
            "linear_1.weight": ("value_memory.weight", 0),
            "linear_1.bias": ("value_memory.bias", 0),
            "proj.weight": ("output.weight", 0),
            "proj.bias": ("output.bias", 0),
        },
    ),
    "studiogan.self_attention": (
        _studiogan_self_attention,
        {
            "sigma": ("gate", 0),
            "conv1x1_theta.weight": ("attention.theta.weight", 2),
            "conv1x1_phi.weight": ("attention.phi.weight", 2),
            "conv1x1_g.weight": ("attention.g.weight", 2),
            "conv1x1_attn.weight": ("attention.output.weight", 2),
        },
    ),
    "pct.offset": (
        _pct_offset,
        {
            "q_conv.weight": ("attention.query_key.weight", 1),
            "k_conv.weight": ("attention.query_key.weight", 1),
            "v_conv.weight": ("attention.value.weight", 1),
            "v_conv.bias": ("attention.value.bias", 0),
            "trans_conv.weight": ("transform.weight", 1),
            "trans_conv.bias": ("transform.bias", 0),
            **_batch_norm("after_norm", "norm"),
        },
    ),
}


def _fill(module: nn.Module, state_dict: Mapping[str, Any], names: Names, source: str) -> None:
    """Copies the weights; two original names that are one parameter here must hold equal values."""
    # num_batches_tracked is not in checkpoints older than PyTorch 0.4.1, and plays no part in eval mode.
    missing = [name for name in names if name not in state_dict and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state_dict if name not in names]
    if missing or unexpected:
        parts = [
            f"{kind} {', '.join(found)}" for kind, found in (("missing", missing), ("unexpected", unexpected)) if found
        ]
        raise ValueError(f"weights of {source!r}: {'; '.join(parts)}")
    ours = module.state_dict()
    filled: dict[str, Tensor] = {}
    for original, value in state_dict.items():
        name, ones = names[original]
        try:
            weight = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"weights of {source!r}: {original} is not a tensor or array of numbers") from error
        target = ours[name]
        shape = (*target.shape, *(1,) * ones)
        if weight.shape != shape:
            raise ValueError(f"weights of {source!r}: {original} has shape {tuple(weight.shape)}, expected {shape}")
        weight = weight.reshape(target.shape)
        if name in filled and not torch.equal(filled[name], weight):
            raise ValueError(
                f"weights of {source!r}: {original} differs from the weight that it shares in the original"
            )
        filled[name] = weight
    module.load_state_dict({**ours, **filled})
