"""Counted costs against closed forms, the paper's table and each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared_attn import create_attention, list_attentions
from shared_attn.complexity import Cost, attention_cost, count_multiply_adds, count_parameters
from shared_attn.external import ExternalAttentionBlock
from shared_attn.products import LEAST_WORK, LinearMap

C, S, N = 512, 64, 128 * 128  # table 12 of arXiv 2105.02358
LINEAR = {
    "external",
    "multihead_external",
    "cross_covariance",
    "linear",
    "performer",
    "double",
    "ham",
    "none",
    "window",
}
SQUARE_CELLS = {"hilo", "spatial_reduction", "window"}


@pytest.mark.parametrize(
    ("name", "options", "cost"),
    [
        ("external", {}, Cost(2 * C * S, 2 * N * C * S)),
        ("external", {"form": "projected", "fold": "never"}, Cost(2 * C * (C + S), 2 * N * C * (C + S))),
        ("external", {"form": "projected"}, Cost(2 * C * (C + S), 2 * N * C * S + 2 * S * C * C)),
        ("self", {}, Cost(4 * C * C, 4 * N * C * C + 2 * N * N * C)),
        ("simplified_self", {}, Cost(0, 2 * N * N * C)),
        ("sagan", {}, Cost(5 * C * C // 4, 5 * N * C * C // 4 + N * (N // 4) * (C // 8 + C // 2))),
        (
            "offset",
            {},
            Cost(9 * C * C // 4 + 4 * C, 9 * N * C * C // 4 + N * N * (C // 4 + C)),
        ),
        ("none", {}, Cost(0, 0)),
    ],
)
def test_costs_are_the_closed_forms(name: str, options: dict[str, Any], cost: Cost) -> None:
    assert attention_cost(name, C, (128, 128), **options) == cost


@pytest.mark.parametrize(
    ("name", "options", "millions", "giga"),
    [
        ("external", {}, 0.066, 1.07),
        ("external", {"form": "projected", "fold": "never"}, 0.59, 9.66),
        ("self", {}, 1.05, 292.06),
        ("sagan", {}, 0.33, 26.84),
        ("multihead_external", {}, 2.11, 38.65),
    ],
)
def test_costs_are_the_measured_ones(name: str, options: dict[str, Any], millions: float, giga: float) -> None:
    cost = attention_cost(name, C, (128, 128), **options)
    assert (round(cost.parameters / 1e6, 3 if millions < 0.1 else 2), round(cost.multiply_adds / 1e9, 2)) == (
        millions,
        giga,
    )


def test_the_papers_block_shrinks_from_9_66_to_1_11_giga_when_folded() -> None:
    block = ExternalAttentionBlock(C).to("meta").eval()
    x = torch.empty(1, N, C, device="meta")
    with torch.no_grad():
        folded = count_multiply_adds(block, x)
        block.attention.fold = "never"
        assert (count_parameters(block), count_multiply_adds(block, x)) == (591_360, 9_663_676_416)
    assert folded == 2 * N * C * S + 2 * S * C * C + S * C  # the bias of the query map is folded too


@pytest.mark.parametrize("name", list_attentions())
def test_linear_cost_is_linear_and_a_real_forward_costs_the_same(name: str) -> None:
    costs = [attention_cost(name, 16, (side, 16)).multiply_adds for side in (16, 32, 64)]
    linear = name in LINEAR
    assert (costs[1] - costs[0] == (costs[2] - costs[1]) / 2) == linear
    attention, x = create_attention(name, 16).eval(), torch.randn(3, 256, 16)
    with torch.inference_mode():
        assert count_multiply_adds(attention, x, grid=(16, 16)) == 3 * costs[0]
    # With gradients at hand other kernels may run; the count is the same.
    assert count_multiply_adds(attention, x.requires_grad_(), grid=(16, 16)) == 3 * costs[0]


def test_whole_networks_and_backward_passes_are_counted() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(512, 5),
    )
    x = torch.randn(2, 4, 4, 4)
    forward = 2 * (16 * 4 * 8 * 9 + 16 * 8 * 4 * 16 + 512 * 5)
    assert count_multiply_adds(network, x) == forward
    first = 2 * 16 * 4 * 8 * 9  # the first layer needs no gradient of its input
    assert count_multiply_adds(lambda: network(x).sum().backward()) == 3 * forward - first


def test_products_of_a_training_step_are_counted() -> None:
    """Large float32 products of LinearMap go another way while gradients are taken."""
    layer, x = LinearMap(64, 96), torch.randn(512, 64, requires_grad=True)
    forward = 512 * 64 * 96
    assert forward >= LEAST_WORK and count_multiply_adds(layer, x) == forward
    assert count_multiply_adds(lambda: layer(x).sum().backward()) == 3 * forward


def test_products_with_vectors_are_counted() -> None:
    matrix, vector = torch.randn(3, 4), torch.randn(4)
    assert count_multiply_adds(torch.mv, matrix, vector) == 12
    assert count_multiply_adds(torch.addmv, torch.randn(3), matrix, vector) == 12
    assert count_multiply_adds(torch.dot, vector, vector) == 4
    assert count_multiply_adds(F.linear, vector, matrix) == 12
    assert count_multiply_adds(F.linear, vector, matrix, torch.randn(3)) == 12


def test_shared_and_frozen_parameters() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(layer, layer)) == 9
    layer.weight.requires_grad_(False)
    assert count_parameters(layer) == 0


@pytest.mark.parametrize("grid", [(), (0,), (2, 3, 4), (-1, 4)])
def test_mistaken_grids_are_told(grid: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"grid must be \(H, W\) or \(N,\)"):
        attention_cost("external", 16, grid)


def test_a_sequence_costs_as_a_column() -> None:
    """Except where a cell is s x s on a grid but s^2 tokens of a sequence."""
    for name in list_attentions():
        same = attention_cost(name, 16, (math.prod((8, 6)),)) == attention_cost(name, 16, (48, 1))
        assert same == (name not in SQUARE_CELLS)
