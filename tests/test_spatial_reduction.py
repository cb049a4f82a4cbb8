"""Spatial-reduction attention: loops, timm's modules with the same weights, partial cells, Z order, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.complexity import attention_cost
from shared_attn.reference import load_reference
from shared_attn.spatial_reduction import SpatialReductionAttention
from shared_attn.windows import z_order

DIM = 16


def _attention(**options: Any) -> SpatialReductionAttention:
    attention = SpatialReductionAttention(DIM, **options).double()
    for name, parameter in attention.named_parameters():
        if name.endswith("bias") or name.startswith("norm"):
            nn.init.normal_(parameter)
    return attention


def _tokens(n: int) -> Tensor:
    return torch.randn(2, n, DIM, dtype=torch.float64)


def _normed(attention: SpatialReductionAttention, token: Tensor) -> Tensor:
    token = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
    return token * attention.norm.weight + attention.norm.bias


def _attend(attention: SpatialReductionAttention, x: Tensor, reduced: Sequence[Tensor], real: Sequence[int]) -> Tensor:
    """Queries (N, C) one at a time against the reduced tokens; padding gets zeros."""
    key, value = (torch.stack(list(reduced)) @ attention.key_value.weight.T + attention.key_value.bias).chunk(2, -1)
    y = torch.zeros_like(x)
    for n in real:
        query = attention.query.weight @ x[n] + attention.query.bias
        heads = []
        for q, k, v in zip(*(part.chunk(attention.num_heads, -1) for part in (query, key, value)), strict=True):
            heads.append((k @ q / math.sqrt(len(q))).softmax(0) @ v)
        y[n] = attention.output.weight @ torch.cat(heads) + attention.output.bias
    return y


def _cells(grid: tuple[int, ...], R: int) -> list[dict[int, tuple[int, int]]]:
    """Each cell's tokens with their places in the kernel."""
    if len(grid) == 1:
        places = [divmod(place, R) for place in z_order(R)]
        return [
            {start + t: places[t] for t in range(R * R) if start + t < grid[0]} for start in range(0, grid[0], R * R)
        ]
    H, W = grid
    return [
        {i * W + j: (i - top, j - left) for i in range(top, min(top + R, H)) for j in range(left, min(left + R, W))}
        for top in range(0, H, R)
        for left in range(0, W, R)
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("partial", ["pad", "drop"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 7), (16,), (11,), (3,), (1, 1)])
@pytest.mark.parametrize("R", [1, 2, 3])
def test_convolution_is_its_loops(R: int, grid: tuple[int, ...], partial: Any, masked: bool) -> None:
    attention, n = _attention(reduction=R, partial=partial), math.prod(grid)
    x = _tokens(n)
    mask = torch.rand(2, n) < 0.8 if masked else torch.ones(2, n, dtype=torch.bool)
    mask[:, 0] = True
    y = attention(x, grid, mask if masked else None)
    for b in range(2):
        real = mask[b].nonzero().flatten().tolist()
        cells = [{n: place for n, place in cell.items() if mask[b, n]} for cell in _cells(grid, R)]
        cells = [cell for cell in cells if cell]
        full = [cell for cell in cells if len(cell) == R * R]
        if partial == "drop" and full:
            cells = full
        if R == 1:
            reduced = list(x[b, real])
        else:
            kernel, bias = attention.convolution.weight, attention.convolution.bias
            sums = [sum(kernel[:, :, i, j] @ x[b, n] for n, (i, j) in cell.items()) + bias for cell in cells]
            reduced = [_normed(attention, token) for token in sums]
        torch.testing.assert_close(y[b], _attend(attention, x[b], reduced, real), rtol=0, atol=1e-12)


def _adaptive(size: int, cells: int) -> list[range]:
    return [range(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", [(7, 6), (5, 2), (16,), (4,), (1, 1)])
@pytest.mark.parametrize("S", [1, 3])
def test_pool_is_its_loops(S: int, grid: tuple[int, ...], masked: bool) -> None:
    attention, n = _attention(form="pool", pool_size=S), math.prod(grid)
    x = _tokens(n)
    mask = torch.rand(2, n) < 0.6 if masked else torch.ones(2, n, dtype=torch.bool)
    mask[:, 0] = True
    y = attention(x, grid, mask if masked else None)
    for b in range(2):
        real = mask[b].nonzero().flatten().tolist()
        if len(grid) == 1:
            cells = [[real[r] for r in run] for run in _adaptive(len(real), S * S)]
        else:
            rows, columns = _adaptive(grid[0], S), _adaptive(grid[1], S)
            cells = [[i * grid[1] + j for i in row for j in column] for row in rows for column in columns]
            cells = [[n for n in cell if mask[b, n]] for cell in cells]
        weight, bias = attention.convolution.weight[:, :, 0, 0], attention.convolution.bias
        means = [x[b, cell].mean(0) for cell in cells if cell]
        reduced = [F.gelu(_normed(attention, weight @ mean + bias)) for mean in means]
        torch.testing.assert_close(y[b], _attend(attention, x[b], reduced, real), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(8, 8), (14, 10), (9, 7)])
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("linear_attn", [False, True])
@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
def test_timms_module_with_its_weights(sr_ratio: int, linear_attn: bool, qkv_bias: bool, grid: tuple[int, int]) -> None:
    pvt = pytest.importorskip("timm.models.pvt_v2", reason="timm is not installed")
    meta = {"dim": 32, "num_heads": 4, "sr_ratio": sr_ratio, "linear_attn": linear_attn, "qkv_bias": qkv_bias}
    theirs = pvt.Attention(**meta).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = load_reference("timm.spatial_reduction", theirs.state_dict(), **meta)
    x = torch.randn(2, math.prod(grid), 32)
    torch.testing.assert_close(ours(x, grid), theirs(x, grid), rtol=0, atol=1e-5)


def test_a_padded_sequence_is_the_sequence_to_the_pool_too() -> None:
    attention, x, mask = _attention(form="pool"), _tokens(40), torch.arange(40).expand(2, 40) < 23
    y = attention(x, (40,), mask)
    torch.testing.assert_close(y[:, :23], attention(x[:, :23], (23,)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("partial", ["pad", "drop"])
@pytest.mark.parametrize("R", [2, 4])
def test_a_map_along_the_z_curve_is_the_map(R: int, partial: Any) -> None:
    attention, order = _attention(reduction=R, partial=partial), torch.tensor(z_order(8))
    x = _tokens(64)
    torch.testing.assert_close(attention(x[:, order], (64,)), attention(x, (8, 8))[:, order], rtol=0, atol=1e-12)


def test_plain_attention_without_reduction() -> None:
    attention, x = _attention(reduction=1, qkv_bias=False), _tokens(15)
    plain = create_attention("self", DIM, num_heads=8).double()
    weights = attention.query.weight, attention.key_value.weight
    plain.load_state_dict({"query_key_value.weight": torch.cat(weights), "output.weight": attention.output.weight})
    torch.testing.assert_close(attention(x, (3, 5)), plain(x) + attention.output.bias, rtol=0, atol=1e-12)


def test_costs_are_the_closed_forms() -> None:
    C, N, R, M = 512, 128 * 128, 4, 32 * 32
    conv = attention_cost("spatial_reduction", C, (128, 128), reduction=R)
    assert conv.multiply_adds == 2 * N * C * C + N * C * C + 2 * M * C * C + 2 * N * M * C
    pool = attention_cost("spatial_reduction", C, (128, 128), form="pool")
    assert pool.multiply_adds == 2 * N * C * C + 3 * 49 * C * C + 2 * N * 49 * C
    assert (round(pool.parameters / 1e6, 2), round(pool.multiply_adds / 1e9, 1)) == (1.31, 9.5)
    dropped = attention_cost("spatial_reduction", C, (9, 11), reduction=4, partial="drop")
    assert dropped.multiply_adds == (2 * 99 + 2 * 4 * (1 + 8)) * C * C + 2 * 99 * 4 * C


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (20,)])
def test_pooling_can_be_differentiated_and_exported(grid: tuple[int, ...]) -> None:
    attention = _attention(form="pool", pool_size=2)
    x = _tokens(math.prod(grid)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, grid).sum(dim=1), (x,))
    program = torch.export.export(attention, (x.detach(), grid))
    torch.testing.assert_close(program.module()(x, grid), attention(x, grid), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "mean"}, "form must be one of conv, pool"),
        ({"partial": "keep"}, "partial must be one of pad, drop"),
        ({"form": "pool", "reduction": 2}, "reduction has no meaning for form 'pool'"),
        ({"form": "pool", "partial": "drop"}, "partial has no meaning for form 'pool'"),
        ({"pool_size": 7}, "pool_size has no meaning for form 'conv'"),
        ({"reduction": 0}, "reduction must be a positive integer"),
        ({"form": "pool", "pool_size": 1.5}, "pool_size must be a positive integer"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"'spatial_reduction'.*{words}"):
        create_attention("spatial_reduction", DIM, **options)
