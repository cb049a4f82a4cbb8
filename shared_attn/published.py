"""What `reference.load_reference` knows: a module of this project and a table of parameter names for each source.

Written from the papers and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from shared_attn.covariance import CrossCovarianceAttention
from shared_attn.external import ExternalAttentionBlock, MultiHeadExternalAttention
from shared_attn.feature_map import GatedAttention
from shared_attn.hilo import HiLoAttention
from shared_attn.offset import OffsetAttention
from shared_attn.sagan import SaganAttention
from shared_attn.spatial_reduction import SpatialReductionAttention
from shared_attn.window import WindowAttention

__all__ = ["SOURCES", "Names", "Source"]

# An original parameter's name -> (this project's name, how many dimensions of size 1 the original has at its end).
Names = dict[str, tuple[str, int]]


class Source(NamedTuple):
    """One original implementation.

    `create` makes the module from the original's constructor arguments; `names` is the table of its parameters, or a
    function of the module where that depends on its arguments.
    """

    create: Callable[..., nn.Module]
    names: Names | Callable[[nn.Module], Names]


def _eanet_external(channels: int, memory_size: int = 64) -> nn.Module:
    return ExternalAttentionBlock(channels, memory_size, eps=1e-9)


def _eanet_multi_head(dim: int, num_heads: int = 8) -> nn.Module:
    return MultiHeadExternalAttention(dim, num_heads, memory_size=64, expansion=4, eps=1e-9)


def _studiogan_self_attention(channels: int) -> nn.Module:
    return GatedAttention(SaganAttention(channels))


def _pct_offset(channels: int) -> nn.Module:
    return OffsetAttention(channels)


def _litv2_hilo(
    dim: int, num_heads: int = 8, qkv_bias: bool = False, window_size: int = 2, alpha: float = 0.5
) -> nn.Module:
    return HiLoAttention(dim, num_heads, window_size, alpha, qkv_bias)


def _litv2_hilo_names(module: nn.Module) -> Names:
    layers = {
        "low_query": "l_q",
        "low_key_value": "l_kv",
        "low_output": "l_proj",
        "high_query_key_value": "h_qkv",
        "high_output": "h_proj",
    }
    names = {name: name.split(".") for name, _ in module.named_parameters()}
    return {f"{layers[layer]}.{kind}": (name, 0) for name, (layer, kind) in names.items()}


def _timm_xca(dim: int, num_heads: int = 8, qkv_bias: bool = False) -> nn.Module:
    return CrossCovarianceAttention(dim, num_heads, qkv_bias)


def _timm_xca_names(module: nn.Module) -> Names:
    names = {"temperature": ("temperature", 0), "qkv.weight": ("query_key_value.weight", 0)}
    if module.get_submodule("query_key_value").bias is not None:
        names["qkv.bias"] = ("query_key_value.bias", 0)
    return {**names, "proj.weight": ("output.weight", 0), "proj.bias": ("output.bias", 0)}


def _timm_spatial_reduction(
    dim: int, num_heads: int = 8, sr_ratio: int = 1, linear_attn: bool = False, qkv_bias: bool = True
) -> nn.Module:
    if linear_attn:  # where timm does not look at sr_ratio
        return SpatialReductionAttention(dim, num_heads, form="pool", qkv_bias=qkv_bias)
    return SpatialReductionAttention(dim, num_heads, sr_ratio, qkv_bias=qkv_bias, partial="drop")


def _timm_spatial_reduction_names(module: nn.Module) -> Names:
    layers = {"query": "q", "key_value": "kv", "output": "proj", "convolution": "sr", "norm": "norm"}
    names = {name: name.split(".") for name, _ in module.named_parameters()}
    return {f"{layers[layer]}.{kind}": (name, 0) for name, (layer, kind) in names.items()}


def _timm_window(
    dim: int, num_heads: int, window_size: int = 7, shift_size: int = 0, qkv_bias: bool = True
) -> nn.Module:
    return WindowAttention(dim, num_heads, window_size, shift_size, qkv_bias)


def _timm_window_names(module: nn.Module) -> Names:
    names = {"relative_position_bias_table": ("relative_bias", 0), "qkv.weight": ("query_key_value.weight", 0)}
    if module.get_submodule("query_key_value").bias is not None:
        names["qkv.bias"] = ("query_key_value.bias", 0)
    return {**names, "proj.weight": ("output.weight", 0), "proj.bias": ("output.bias", 0)}


def _batch_norm(original: str, ours: str) -> Names:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{original}.{kind}": (f"{ours}.{kind}", 0) for kind in kinds}


SOURCES: dict[str, Source] = {
    "eanet.external": Source(
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
    "eanet.multi_head": Source(
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
    "studiogan.self_attention": Source(
        _studiogan_self_attention,
        {
            "sigma": ("gate", 0),
            "conv1x1_theta.weight": ("attention.theta.weight", 2),
            "conv1x1_phi.weight": ("attention.phi.weight", 2),
            "conv1x1_g.weight": ("attention.g.weight", 2),
            "conv1x1_attn.weight": ("attention.output.weight", 2),
        },
    ),
    "pct.offset": Source(
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
    "litv2.hilo": Source(_litv2_hilo, _litv2_hilo_names),
    "timm.xca": Source(_timm_xca, _timm_xca_names),
    "timm.spatial_reduction": Source(_timm_spatial_reduction, _timm_spatial_reduction_names),
    "timm.window": Source(_timm_window, _timm_window_names),
}
