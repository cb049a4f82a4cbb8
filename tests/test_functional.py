"""The functions against loops in float64, the paper's three-step form, and their own properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shared_attn.functional import (
    double_normalised_attention,
    external_attention,
    external_attention_paper,
    softmax_attention,
)

B, N, C, S, OUT = 2, 7, 5, 4, 3


def _inputs(*, grad: bool = False, n: int = N) -> list[Tensor]:
    """x, keys, values, key_bias, value_bias in float64."""
    shapes = ((B, n, C), (S, C), (OUT, S), (S,), (OUT,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=grad) for shape in shapes]


def _external_loops(
    x: Tensor, keys: Tensor, values: Tensor, key_bias: Tensor, value_bias: Tensor, eps: float
) -> Tensor:
    """Eq. 5-6 with algorithm 1's double normalisation, one number at a time."""
    y = torch.zeros(B, N, OUT, dtype=torch.float64)
    for b in range(B):
        mass = [[math.exp(float(x[b, n] @ keys[s] + key_bias[s])) for s in range(S)] for n in range(N)]
        over_tokens = [sum(mass[n][s] for n in range(N)) for s in range(S)]
        for n in range(N):
            share = [mass[n][s] / over_tokens[s] for s in range(S)]
            attention = [p / (eps + sum(share)) for p in share]
            for c in range(OUT):
                y[b, n, c] = value_bias[c] + sum(attention[s] * values[c, s] for s in range(S))
    return y


@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.1])
def test_external_attention_is_the_loops(eps: float) -> None:
    inputs = _inputs()
    expected = _external_loops(*inputs, eps=eps)
    torch.testing.assert_close(external_attention(*inputs, eps=eps), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(external_attention_paper(*inputs, eps=eps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.1])
def test_gradients_are_those_of_the_papers_form(eps: float) -> None:
    inputs = _inputs(grad=True)
    grad = torch.randn(B, N, OUT, dtype=torch.float64)
    ours = torch.autograd.grad(external_attention(*inputs, eps=eps), inputs, grad)
    paper = torch.autograd.grad(external_attention_paper(*inputs, eps=eps), inputs, grad)
    torch.testing.assert_close(ours, paper, rtol=0, atol=1e-10)
    assert torch.equal(ours[3], torch.zeros(S, dtype=torch.float64)), "a bias a slot cancels exactly"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_first_and_second_derivatives_match_finite_differences(eps: float, masked: bool) -> None:
    x, keys, values, key_bias, value_bias = _inputs(grad=True, n=4)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]]) if masked else None

    def function(x: Tensor, keys: Tensor, values: Tensor, value_bias: Tensor) -> Tensor:
        return external_attention(x, keys, values, key_bias, value_bias, mask=mask, eps=eps)

    assert torch.autograd.gradcheck(function, (x, keys, values, value_bias))
    assert torch.autograd.gradgradcheck(function, (x, keys, values, value_bias))


def test_dimensions_between_tokens_and_channels_are_independent() -> None:
    _, keys, values, key_bias, value_bias = _inputs()
    x = torch.randn(B, N, 3, C, dtype=torch.float64)
    mask = torch.rand(B, N) < 0.7
    y = external_attention(x, keys, values, key_bias, value_bias, mask=mask)
    for head in range(3):
        alone = external_attention(x[:, :, head], keys, values, key_bias, value_bias, mask=mask)
        torch.testing.assert_close(y[:, :, head], alone, rtol=0, atol=1e-14)


def test_attention_rows_sum_to_one() -> None:
    x, keys, *_ = _inputs()
    attention = external_attention(x, keys, torch.eye(S, dtype=torch.float64))
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, N, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_gap_of_120_between_logits_stays_finite_and_right() -> None:
    x = torch.zeros(1, 4, 1)
    x[0, 0] = 120.0  # every slot's mass lies on token 0; the others' underflows in float32
    keys, values = torch.tensor([[1.0], [1.1]]), torch.tensor([[1.0, 3.0]])
    assert external_attention_paper(x, keys, values, eps=0.0).isnan().any()
    for leaf in (x, keys, values):
        leaf.requires_grad_()
    y = external_attention(x, keys, values)
    exact = external_attention_paper(x.double(), keys.double(), values.double(), eps=0.0)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (x, keys, values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_inputs_and_outputs_only(dtype: torch.dtype) -> None:
    x, keys = (3 * torch.randn(2, 64, 32)).to(dtype), torch.randn(16, 32).to(dtype)
    values = torch.randn(8, 16).to(dtype)
    exact = external_attention(x.double(), keys.double(), values.double())
    y = external_attention(x, keys, values)
    assert y.dtype == dtype
    # One rounding of the map, one of the output; logits rounded to half precision are off by six times this.
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps * exact.abs().max().item())


def test_autocast_leaves_the_logits_in_float32() -> None:
    x, keys, values = 3 * torch.randn(2, 64, 32), torch.randn(16, 32), torch.randn(8, 16)
    exact = external_attention(x.double(), keys.double(), values.double())
    leaves = [leaf.requires_grad_() for leaf in (x, keys, values)]
    with torch.autocast("cpu", torch.bfloat16):
        y = external_attention(x, keys, values)
        assert y.dtype == torch.bfloat16
        grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert [grad.dtype for grad in grads] == [torch.float32] * 3
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2**-6 * exact.abs().max().item())


def test_only_one_tensor_of_tokens_by_slots_is_kept_for_the_backward() -> None:
    kept: list[tuple[int, ...]] = []
    x, keys, values, *_ = _inputs(grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        external_attention(x, keys, values)
    assert kept.count((B, N, S)) == 1
    assert sorted(kept) == sorted([(B, N, C), (S, C), (OUT, S), (B, N, S), (B, 1, S)])


def test_padding_is_as_good_as_absent() -> None:
    x, keys, values, key_bias, value_bias = _inputs(grad=True)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 4 + [False] * 3])
    y = external_attention(x, keys, values, key_bias, value_bias, mask=mask, eps=1e-3)
    short = external_attention(x[:, :4], keys, values, key_bias, value_bias, eps=1e-3)
    torch.testing.assert_close(y[:, :4], short, rtol=0, atol=1e-14)
    assert not y[:, 4:].any()
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert not grad[:, 4:].any()
    assert grad[:, :4].all()


def test_a_sample_that_is_all_padding_is_zero_and_harmless() -> None:
    x, keys, values, key_bias, value_bias = _inputs(grad=True)
    mask = torch.tensor([[True] * N, [False] * N])
    y = external_attention(x, keys, values, key_bias, value_bias, mask=mask)
    assert not y[1].any()
    grads = torch.autograd.grad(y.square().sum(), (x, keys, values))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][1].any()


@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.1])
def test_double_normalised_attention_is_the_loops(eps: float) -> None:
    q, v = torch.randn(B, N, C, dtype=torch.float64), torch.randn(B, N, OUT, dtype=torch.float64)
    expected = torch.zeros(B, N, OUT, dtype=torch.float64)
    for b in range(B):
        mass = torch.exp(q[b] @ q[b].T)
        attention = torch.stack([row / row.sum() for row in mass])  # softmax over the last axis
        attention = torch.stack([column / (eps + column.sum()) for column in attention.T], dim=1)  # L1 over the first
        for m in range(N):
            expected[b, m] = sum(attention[n, m] * v[b, n] for n in range(N))
    torch.testing.assert_close(double_normalised_attention(q, v, eps=eps), expected, rtol=0, atol=1e-12)


def test_double_normalised_attention_leaves_padding_out() -> None:
    q, v = torch.randn(B, N, C, dtype=torch.float64), torch.randn(B, N, OUT, dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False] * 2, [False] * N])
    y = double_normalised_attention(q, v, mask=mask)
    torch.testing.assert_close(y[:1, :5], double_normalised_attention(q[:1, :5], v[:1, :5]), rtol=0, atol=1e-12)
    assert y.isfinite().all()


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_softmax_attention_is_the_loops(num_heads: int, scale: float | None) -> None:
    D, E, M = 2, 4, 5
    q = torch.randn(B, N, num_heads * D, dtype=torch.float64)
    k = torch.randn(B, M, num_heads * D, dtype=torch.float64)
    v = torch.randn(B, M, num_heads * E, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, True], [False, True, False, False, False]])
    expected = torch.zeros(B, N, num_heads * E, dtype=torch.float64)
    for b in range(B):
        for h in range(num_heads):
            narrow, wide = slice(h * D, (h + 1) * D), slice(h * E, (h + 1) * E)
            for n in range(N):
                logits = [(scale or D**-0.5) * q[b, n, narrow] @ k[b, m, narrow] for m in range(M)]
                weights = [math.exp(logit) * bool(mask[b, m]) for m, logit in enumerate(logits)]
                expected[b, n, wide] = sum(w / sum(weights) * v[b, m, wide] for m, w in enumerate(weights))
    y = softmax_attention(q, k, v, mask=mask, num_heads=num_heads, scale=scale)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
