"""HiLo attention: loops, published numbers and cost, grids that no window divides, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.complexity import attention_cost
from shared_attn.hilo import HiLoAttention
from shared_attn.reference import load_reference
from shared_attn.windows import Windows, z_order

DIM = 16


def _hilo(**options: Any) -> HiLoAttention:
    attention = HiLoAttention(DIM, **options).double()
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return attention


def _linear(attention: nn.Module, layer: str, x: Tensor) -> Tensor:
    linear = attention.get_submodule(layer)
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def _windows(grid: tuple[int, ...], size: int) -> list[list[int]]:
    """The tokens of each window, row by row."""
    if len(grid) == 1:
        return [list(range(i, min(i + size**2, grid[0]))) for i in range(0, grid[0], size**2)]
    H, W = grid
    return [
        [i * W + j for i in range(top, min(top + size, H)) for j in range(left, min(left + size, W))]
        for top in range(0, H, size)
        for left in range(0, W, size)
    ]


def _softmax_heads(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """One query (C,) against keys and values (M, C), head by head."""
    heads = []
    for q, k, v in zip(query.chunk(num_heads), key.chunk(num_heads, -1), value.chunk(num_heads, -1), strict=True):
        heads.append((k @ q / math.sqrt(len(q))).softmax(0) @ v)
    return torch.cat(heads)


def _loops(attention: HiLoAttention, x: Tensor, grid: tuple[int, ...], mask: Tensor) -> Tensor:
    """The paper's two attentions, a token at a time; padding gets zeros."""
    y = torch.zeros_like(x)
    for b in range(len(x)):
        windows = [[n for n in window if mask[b, n]] for window in _windows(grid, attention.window_size)]
        windows = [window for window in windows if window]
        averages = torch.stack([x[b, window].mean(0) for window in windows])
        for window in windows:
            for n in window:
                parts = []
                if attention.high_heads:
                    query = _linear(attention, "high_query_key_value", x[b, n]).chunk(3)[0]
                    _, key, value = _linear(attention, "high_query_key_value", x[b, window]).chunk(3, -1)
                    high = _softmax_heads(query, key, value, attention.high_heads)
                    parts.append(_linear(attention, "high_output", high))
                if attention.low_heads:
                    query = _linear(attention, "low_query", x[b, n])
                    key, value = _linear(attention, "low_key_value", averages).chunk(2, -1)
                    low = _softmax_heads(query, key, value, attention.low_heads)
                    parts.append(_linear(attention, "low_output", low))
                y[b, n] = torch.cat(parts)
    return y


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7), (16,), (11,), (1,)])
@pytest.mark.parametrize("options", [{}, {"window_size": 3, "alpha": 0.9, "num_heads": 4, "qkv_bias": True}])
def test_hilo_is_its_loops(options: dict[str, Any], grid: tuple[int, ...], masked: bool) -> None:
    attention, n = _hilo(**options), math.prod(grid)
    x = torch.randn(2, n, DIM, dtype=torch.float64)
    mask = torch.rand(2, n) < 0.6 if masked else torch.ones(2, n, dtype=torch.bool)
    mask[:, 0] = True
    y = attention(x, grid, mask if masked else None)
    torch.testing.assert_close(y, _loops(attention, x, grid, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0, 1])
def test_either_kind_stands_alone(alpha: int) -> None:
    attention, x = _hilo(alpha=alpha), torch.randn(2, 15, DIM, dtype=torch.float64)
    assert (attention.low_heads, attention.high_heads) == (8 * alpha, 8 - 8 * alpha)
    everything = torch.ones(2, 15, dtype=torch.bool)
    torch.testing.assert_close(attention(x, (3, 5)), _loops(attention, x, (3, 5), everything), rtol=0, atol=1e-12)
    assert attention_cost("hilo", DIM, (3, 5), alpha=alpha).parameters == (4 * DIM + 1) * DIM


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_windows_of_one_token_are_plain_attention(alpha: float) -> None:
    attention = _hilo(window_size=1, alpha=alpha)
    plain = create_attention("self", DIM, num_heads=8).double()
    weights = [attention.get_submodule(f"low_{layer}").weight for layer in ("query", "key_value", "output")]
    plain.load_state_dict({"query_key_value.weight": torch.cat(weights[:2]), "output.weight": weights[2]})
    x = torch.randn(2, 15, DIM, dtype=torch.float64)
    expected = plain(x) + attention.get_submodule("low_output").bias
    torch.testing.assert_close(attention(x, (3, 5)), expected, rtol=0, atol=1e-12)


def test_hi_fi_sees_its_window_only() -> None:
    attention, x = _hilo(alpha=0), torch.randn(1, 24, DIM, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0] += 1
    changed = (attention(moved, (4, 6)) - attention(x, (4, 6))).abs().amax(-1).squeeze(0) > 0
    assert changed.nonzero().flatten().tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("name", ["hilo_litv2_a", "hilo_litv2_b"])
def test_litv2s_numbers(golden: Callable[..., Any], name: str) -> None:
    meta, state, inputs, output = golden(name)
    arguments = {key: value for key, value in meta.items() if key not in ("source", "layout", "grid")}
    module = load_reference("litv2.hilo", state, **arguments)
    y = module(inputs["x"], grid=meta["grid"])
    torch.testing.assert_close(y, output, rtol=0, atol=1e-5)


def test_cost_is_the_published_one() -> None:
    cost = attention_cost("hilo", 384, (14, 14), num_heads=12, window_size=2, alpha=0.5)
    assert cost.multiply_adds == 83_467_776


@pytest.mark.parametrize(("num_heads", "alpha", "low"), [(8, 0.9, 7), (4, 0.9, 3), (12, 0.5, 6), (8, 0.125, 1)])
def test_heads_are_truncated_as_the_original_does(num_heads: int, alpha: float, low: int) -> None:
    assert HiLoAttention(24 * num_heads, num_heads, alpha=alpha).low_heads == low


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.1}, "alpha 0.1 leaves none of 8 heads.*at least 0.125.*or 0 for Hi-Fi"),
        ({"alpha": -0.1}, "alpha must be a number from 0"),
        ({"alpha": 1.1}, "alpha must be a number from 0"),
        ({"alpha": float("nan")}, "alpha must be a number from 0"),
        ({"alpha": "0.5"}, "alpha must be a number from 0"),
        ({"window_size": 0}, "window_size"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"'hilo'.*{words}"):
        create_attention("hilo", DIM, **options)


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7), (7,), (1, 1)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_windows_are_cut_and_put_together(grid: tuple[int, ...], size: int) -> None:
    windows, x = Windows(grid, size), torch.arange(1.0, 1 + 2 * math.prod(grid)).reshape(2, -1, 1)
    tokens = windows.arrange(x)
    each = windows.each(tokens)
    found = [[int(n) - 1 for n in window if n > 0] for window in each.squeeze(-1).tolist()]
    first = _windows(grid, size)
    assert found == first + [[n + math.prod(grid) for n in window] for window in first]
    assert torch.equal(windows.together(each, 2), tokens)
    assert torch.equal(windows.restore(tokens), x)


def test_the_z_curve_goes_by_quadrants() -> None:
    assert z_order(2) == [0, 1, 2, 3]
    assert z_order(4) == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert sorted(z_order(7)) == list(range(49))
    assert z_order(3) == [0, 1, 3, 4, 2, 5, 6, 7, 8]
