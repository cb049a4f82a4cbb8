"""Attention on feature maps: the residual, the gate, the memory layout and SAGAN's block as convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared_attn import create_attention, list_attentions
from shared_attn.complexity import count_parameters
from shared_attn.feature_map import (
    FeatureMapAttention,
    GatedAttention,
    feature_map_to_tokens,
    tokens_to_feature_map,
)


@pytest.mark.parametrize("name", list_attentions())
def test_a_new_block_is_the_identity_and_its_gate_learns(name: str) -> None:
    block, x = FeatureMapAttention(name, 16), torch.randn(2, 16, 4, 6)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.gate.grad is not None
    assert block.gate.grad.all()


@pytest.mark.parametrize("name", list_attentions())
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_map_is_its_pixels_row_by_row(name: str, memory_format: torch.memory_format) -> None:
    block = FeatureMapAttention(name, 16).double().eval()
    torch.nn.init.constant_(block.gate, 0.7)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    tokens = torch.stack([x[:, :, i, j] for i in range(4) for j in range(6)], dim=1)
    attended = block.attention(tokens, grid=(4, 6))
    y = block(x.to(memory_format=memory_format))
    for i in range(4):
        for j in range(6):
            expected = x[:, :, i, j] + 0.7 * attended[:, 6 * i + j]
            torch.testing.assert_close(y[:, :, i, j], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_map_keeps_its_memory_format(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 16, 4, 6).to(memory_format=memory_format)
    for name in list_attentions():
        assert FeatureMapAttention(name, 16)(x).is_contiguous(memory_format=memory_format), name


def test_channels_last_maps_are_tokens_without_a_copy() -> None:
    x = torch.randn(2, 16, 4, 6).to(memory_format=torch.channels_last)
    tokens = feature_map_to_tokens(x)
    assert tokens.is_contiguous()
    assert tokens.data_ptr() == x.data_ptr()
    back = tokens_to_feature_map(tokens, (4, 6))
    assert back.data_ptr() == x.data_ptr()
    assert torch.equal(back, x)


def test_blocks_have_the_published_parameters() -> None:
    assert count_parameters(FeatureMapAttention("external", 256)) == 32_769
    assert count_parameters(FeatureMapAttention("external", 256, form="projected")) == 163_841
    assert count_parameters(FeatureMapAttention("sagan", 256)) == 5 * 256**2 // 4 + 1


def test_sagan_block_is_studiogans_convolutions() -> None:
    block = FeatureMapAttention("sagan", 16).double()
    torch.nn.init.constant_(block.gate, 0.7)
    x = torch.randn(2, 16, 6, 4, dtype=torch.float64)
    theta, phi, g, output = (
        block.attention.get_submodule(layer).weight[..., None, None] for layer in ("theta", "phi", "g", "output")
    )
    query = F.conv2d(x, theta).flatten(2)
    key = F.max_pool2d(F.conv2d(x, phi), 2).flatten(2)
    value = F.max_pool2d(F.conv2d(x, g), 2).flatten(2)
    weights = torch.einsum("bcn,bcm->bnm", query, key).softmax(-1)
    expected = x + 0.7 * F.conv2d(torch.einsum("bcm,bnm->bcn", value, weights).view(2, 8, 6, 4), output)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_gated_attention_is_the_same_residual_on_tokens() -> None:
    gated = GatedAttention(create_attention("external", 8)).double()
    torch.nn.init.constant_(gated.gate, -0.3)
    x, mask = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected = x - 0.3 * gated.attention(x, mask=mask)
    torch.testing.assert_close(gated(x, mask=mask), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 16, 4), (16, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 16, H, W\)"):
        FeatureMapAttention("external", 16)(torch.randn(shape))


def test_mistaken_options_are_told() -> None:
    with pytest.raises(ValueError, match="external.*'heads'.*memory_size"):
        FeatureMapAttention("external", 16, heads=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_residual_in_the_maps_dtype_or_wider(dtype: torch.dtype) -> None:
    block = FeatureMapAttention("external", 16, form="projected")
    torch.nn.init.constant_(block.gate, 0.7)
    x = torch.randn(2, 16, 4, 6, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, block(x.float()), rtol=0, atol=0.03)
