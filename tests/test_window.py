"""Window attention: loops, timm's Swin with the same weights, shifts, sequences along the Z curve, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from machine import exporting
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.complexity import attention_cost
from shared_attn.reference import load_reference
from shared_attn.window import WindowAttention
from shared_attn.windows import z_order

DIM, HEADS = 16, 4


def _attention(**options: Any) -> WindowAttention:
    attention = WindowAttention(DIM, **{"num_heads": HEADS, **options}).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def _tokens(n: int) -> Tensor:
    return torch.randn(2, n, DIM, dtype=torch.float64)


def _places(grid: tuple[int, ...], s: int, shift: int) -> Iterator[tuple[object, tuple[int, int]]]:
    """For each token the window that it is in, any name, and its row and column there up to a constant a window."""
    if len(grid) == 1:
        curve = [divmod(place, s) for place in z_order(s)]
        for n in range(grid[0]):
            window, t = divmod(n - shift * s, s * s)
            yield window, curve[t]
        return
    down, across = (shift if size > s else 0 for size in grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            yield ((i - down) // s, (j - across) // s), (i, j)


def _loops(attention: WindowAttention, x: Tensor, grid: tuple[int, ...], mask: Tensor) -> Tensor:
    """A token at a time; windows begin at the shift, so that no mask and no roll is needed."""
    s, D = attention.window_size, DIM // attention.num_heads
    projected = x @ attention.query_key_value.weight.T
    if attention.query_key_value.bias is not None:
        projected = projected + attention.query_key_value.bias
    places = list(_places(grid, s, attention.shift))
    y = torch.zeros_like(x)
    for b in range(len(x)):
        query, key, value = projected[b].chunk(3, -1)
        for n, (window, (i, j)) in enumerate(places):
            if not mask[b, n]:
                continue
            members = [m for m, (other, _) in enumerate(places) if other == window and mask[b, m]]
            rows = [(i - places[m][1][0] + s - 1) * (2 * s - 1) + j - places[m][1][1] + s - 1 for m in members]
            heads = []
            for h in range(attention.num_heads):
                part = slice(h * D, (h + 1) * D)
                logits = key[members][:, part] @ query[n, part] / math.sqrt(D) + attention.relative_bias[rows, h]
                heads.append(logits.softmax(0) @ value[members][:, part])
            y[b, n] = attention.output.weight @ torch.cat(heads) + attention.output.bias
    return y


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [(4, 8), (5, 7), (2, 9), (3, 3), (16,), (37,), (5,), (1, 1)])
@pytest.mark.parametrize(
    "options", [{"window_size": 4}, {"window_size": 4, "shift": "half"}, {"window_size": 3, "shift": 1}]
)
def test_window_attention_is_its_loops(options: dict[str, Any], grid: tuple[int, ...], masked: bool) -> None:
    attention, n = _attention(**options), math.prod(grid)
    x = _tokens(n)
    mask = torch.rand(2, n) < 0.6 if masked else torch.ones(2, n, dtype=torch.bool)
    y = attention(x, grid, mask if masked else None)
    torch.testing.assert_close(y, _loops(attention, x, grid, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(8, 8), (12, 4), (3, 8)])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_swins_block_with_its_weights(qkv_bias: bool, shift: int, grid: tuple[int, int]) -> None:
    swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    block = swin.SwinTransformerBlock(32, grid, 4, window_size=4, shift_size=shift, qkv_bias=qkv_bias).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *grid, 32)
    expected = block._attn(x).flatten(1, 2)
    size = block.attn.window_size
    if min(grid) < 4:  # timm cuts the table down to the grid; ours holds the whole one
        table = torch.zeros(7, 7, 4)
        table[4 - size[0] : 3 + size[0], 4 - size[1] : 3 + size[1]] = block.attn.relative_position_bias_table.view(
            2 * size[0] - 1, 2 * size[1] - 1, 4
        )
        state = {**block.attn.state_dict(), "relative_position_bias_table": table.reshape(49, 4)}
    else:
        state = block.attn.state_dict()
    meta = {"dim": 32, "num_heads": 4, "window_size": 4, "shift_size": shift, "qkv_bias": qkv_bias}
    ours = load_reference("timm.window", state, **meta)
    torch.testing.assert_close(ours(x.flatten(1, 2), grid), expected, rtol=0, atol=1e-5)


def test_swins_attention_on_one_window() -> None:
    swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    theirs = swin.WindowAttention(32, 4, window_size=7).eval()
    nn.init.normal_(theirs.relative_position_bias_table)
    ours = load_reference("timm.window", theirs.state_dict(), dim=32, num_heads=4)
    x = torch.randn(3, 49, 32)
    torch.testing.assert_close(ours(x, (7, 7)), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [0, "half"])
@pytest.mark.parametrize("real", [5, 9, 23])
def test_a_padded_sequence_is_the_sequence(real: int, shift: Any) -> None:
    attention, x = _attention(window_size=4, shift=shift), _tokens(40)
    mask = torch.arange(40).expand(2, 40) < real
    alone = attention(x[:, :real], (real,))
    torch.testing.assert_close(attention(x, (40,), mask)[:, :real], alone, rtol=0, atol=1e-12)


def test_a_map_along_the_z_curve_is_the_map() -> None:
    attention, order, x = _attention(window_size=4), torch.tensor(z_order(8)), _tokens(64)
    torch.testing.assert_close(attention(x[:, order], (64,)), attention(x, (8, 8))[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "first"), [(0, range(16)), (2, range(8))])
def test_a_token_reaches_its_window(shift: int, first: range) -> None:
    attention, x = _attention(window_size=4, shift=shift), _tokens(64)
    moved = x.clone()
    moved[:, 0] += 1
    changed = (attention(moved, (64,)) - attention(x, (64,))).abs().amax(dim=(0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == list(first)


def test_cost_is_the_closed_form() -> None:
    C, N, T = 512, 128 * 128, 64
    cost = attention_cost("window", C, (128, 128))
    assert cost.multiply_adds == 4 * N * C * C + 2 * N * T * C
    assert cost.parameters == 4 * C * C + 4 * C + 15 * 15 * 8
    assert attention_cost("window", C, (128, 128), shift="half").multiply_adds == cost.multiply_adds


@pytest.mark.parametrize("grid", [(5, 7), (20,)])
def test_every_offset_in_use_learns(grid: tuple[int, ...]) -> None:
    attention = _attention(window_size=2, shift=1)
    attention(_tokens(math.prod(grid)), grid).sin().sum().backward()
    assert attention.relative_bias.grad is not None
    assert attention.relative_bias.grad.all()


def test_compiled_for_any_grid() -> None:
    torch._dynamo.reset()
    attention = _attention(window_size=2, shift=1).eval()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for grid in ((5, 6), (4, 9)):
        x = _tokens(math.prod(grid))
        torch.testing.assert_close(compiled(x, grid=grid), attention(x, grid), rtol=0, atol=1e-12)


class _OnSequence(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, (x.shape[1],))
        return y


def test_shifted_windows_export_for_any_number_of_tokens() -> None:
    module = _OnSequence(_attention(window_size=2, shift="half")).eval()
    lengths = {1: torch.export.Dim("tokens", min=4, max=65_536)}
    with torch.no_grad(), exporting():
        program = torch.export.export(module, (_tokens(12),), dynamic_shapes=(lengths,))
    for n in (4, 7, 33):
        x = _tokens(n)
        torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": 8}, "shift must be 'half' or an integer from 0 to 7, got 8"),
        ({"shift": -1}, "shift must be 'half'"),
        ({"shift": True}, "shift must be 'half'"),
        ({"shift": "full"}, "shift must be 'half'.*'full'"),
        ({"window_size": 0}, "window_size"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"'window'.*{words}"):
        create_attention("window", DIM, **options)
