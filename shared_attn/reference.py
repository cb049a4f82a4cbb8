"""Weights that were published for the original implementations, in this project's modules.

The modules compute the whole original ones (residual and activation included) on (B, N, C) with a grid. The sources
themselves stand in `published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared_attn.attention import check_options
from shared_attn.published import SOURCES, Names

__all__ = ["list_references", "load_reference"]


def load_reference(source: str, state_dict: Mapping[str, Any], **meta: Any) -> nn.Module:
    """A module of this project in eval mode with weights that an original implementation saved.

    Args:
        source: one of `list_references()`.
        state_dict: the original's parameters and buffers by their original names, tensors or numpy arrays.
        meta: the original's constructor arguments. eanet.external: channels, memory_size; eanet.multi_head: dim,
            num_heads; studiogan.self_attention: channels; pct.offset: channels; litv2.hilo: dim,
            num_heads, qkv_bias, window_size, alpha; timm.xca: dim, num_heads, qkv_bias;
            timm.spatial_reduction: dim, num_heads, sr_ratio, linear_attn, qkv_bias; timm.window: dim, num_heads,
            window_size, shift_size (the Swin block's), qkv_bias.

    Returns:
        A module called as the variants are, `module(x, grid=None, mask=None)`, (B, N, C) in and out.

    Raises:
        ValueError: for an unknown source or constructor argument, and for weights that are missing, unexpected or of
            another shape; the message names them.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; there are: {', '.join(SOURCES)}")
    create, names = SOURCES[source]
    check_options(f"source {source!r}", create, meta)
    module = create(**meta)
    _fill(module, state_dict, names(module) if callable(names) else names, source)
    return module.eval()


def list_references() -> list[str]:
    """The sources that `load_reference` knows."""
    return list(SOURCES)


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
