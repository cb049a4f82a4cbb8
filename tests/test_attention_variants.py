"""Every name in the dictionary keeps the one contract; each variant is what its paper says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shared_attn import ATTENTION, Attention, create_attention, list_attentions
from shared_attn.complexity import count_parameters
from shared_attn.offset import DoubleNormalisedAttention, OffsetBlock, create_offset_layer

DIM, GRID = 16, (4, 3)
N = math.prod(GRID)
EVERY = pytest.mark.parametrize("name", list_attentions())

# These provably have no gradient: the softmax over the tokens cancels a constant a slot, batch norm one a channel.
WITHOUT_GRADIENT = {"multihead_external": {"query.bias", "key_memory.bias"}, "offset": {"transform.bias"}}

# These differentiate something else than their own output unless told to: ham has the paper's one-step gradient.
WHOLE_GRADIENT: dict[str, dict[str, Any]] = {"ham": {"gradient": "full"}}


def _tokens(n: int = N, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, n, DIM, dtype=dtype)


def _attention(name: str, **options: Any) -> Attention:
    return create_attention(name, dim=DIM, **options).double()


@EVERY
@pytest.mark.parametrize("grid", [GRID, (N,), (1, N), (N, 1)])
def test_tokens_in_tokens_out_in_their_dtype(name: str, grid: tuple[int, ...]) -> None:
    attention = create_attention(name, dim=DIM)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = attention.to(dtype)(_tokens(dtype=dtype), grid=grid)
        assert y.shape == (2, N, DIM)
        assert y.dtype == dtype
        assert y.isfinite().all()


@EVERY
@pytest.mark.parametrize("grid", [(1,), (1, 1), (3,), (3, 5), (1, 7)])
def test_any_grid_works_down_to_one_token(name: str, grid: tuple[int, ...]) -> None:
    attention = _attention(name).eval()
    assert attention(_tokens(math.prod(grid)), grid=grid).isfinite().all()


@EVERY
def test_half_precision_is_near(name: str) -> None:
    attention = create_attention(name, dim=DIM).eval()
    x = _tokens(dtype=torch.bfloat16)
    exact = copy.deepcopy(attention).double()(x.double(), grid=GRID)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x.float(), grid=GRID)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


@EVERY
def test_padding_influences_nothing(name: str) -> None:
    """Six real tokens and six of padding are six tokens, in training mode too, whatever the padding holds."""
    attention = _attention(name)
    if not attention.takes_mask:
        with pytest.raises(ValueError, match=repr(name)):
            attention(_tokens(), grid=(N,), mask=torch.ones(2, N, dtype=torch.bool))
        return
    twin = copy.deepcopy(attention)
    real = torch.arange(N) < 6
    x, mask = _tokens(), real.expand(2, N)
    x[:, 6:] = float("nan")
    x.requires_grad_()
    y = attention(x, grid=(N,), mask=mask)
    torch.testing.assert_close(y[:, :6], twin(x[:, :6], grid=(6,)), rtol=0, atol=1e-12)
    assert not y[:, 6:].any()
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[:, 6:].any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in attention.parameters())


@EVERY
def test_a_sample_without_real_tokens_is_zero(name: str) -> None:
    attention = _attention(name)
    x = _tokens().requires_grad_()
    y = attention(x, grid=GRID, mask=torch.tensor([[True] * N, [False] * N]))
    y.square().sum().backward()
    assert not y[1].any()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@EVERY
def test_scattered_padding_is_left_out(name: str) -> None:
    attention = _attention(name).eval()
    mask = torch.rand(2, N) < 0.6
    x = _tokens()
    y = attention(x, grid=GRID, mask=mask)
    other = torch.where(mask.unsqueeze(-1), x, torch.randn_like(x))
    torch.testing.assert_close(y, attention(other, grid=GRID, mask=mask), rtol=0, atol=0)
    if not attention.needs_grid:
        for b in range(2):
            alone = attention(x[b : b + 1, mask[b]])
            torch.testing.assert_close(y[b : b + 1, mask[b]], alone, rtol=0, atol=1e-12)


@EVERY
def test_every_parameter_and_token_gets_a_gradient(name: str) -> None:
    attention = _attention(name)
    x = _tokens().requires_grad_()
    attention(x, grid=GRID).sin().sum().backward()
    assert x.grad is not None
    assert x.grad.any(dim=-1).all()
    size = {key: parameter.grad.abs().max() for key, parameter in attention.named_parameters()}
    assert {key for key, largest in size.items() if largest < 1e-12} == WITHOUT_GRADIENT.get(name, set())


@EVERY
def test_one_token_changes_the_others(name: str) -> None:
    attention = _attention(name).eval()
    x = _tokens()
    moved = x.clone()
    moved[0, 0] += 1
    change = (attention(moved, grid=GRID) - attention(x, grid=GRID)).abs().amax(dim=-1)
    assert not change[1].any(), "samples are independent"
    assert change[0, 1:].all() == (name != "none")


@EVERY
def test_the_order_of_tokens_does_not_matter_without_a_layout(name: str) -> None:
    attention = _attention(name)
    x, order = _tokens(), torch.randperm(N)
    same = torch.allclose(attention(x, grid=GRID)[:, order], attention(x[:, order], grid=GRID), rtol=0, atol=1e-12)
    assert same == (not attention.needs_grid)


@EVERY
def test_penalties_can_differentiate_twice(name: str) -> None:
    """As R1 does. torch's fused softmax kernels have no second derivative; its plain one has."""
    attention = _attention(name, **WHOLE_GRADIENT.get(name, {}))
    x = _tokens().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (grad,) = torch.autograd.grad(attention(x, grid=GRID).sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
    step = 1e-5 * torch.randn_like(x)

    def penalty(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(attention(x, grid=GRID).sin().sum(), x)
        return grad.square().sum()

    change = penalty(x + step) - penalty(x - step)
    torch.testing.assert_close(change, 2 * (second * step).sum(), rtol=1e-3, atol=1e-9)


@EVERY
def test_state_survives_a_copy(name: str) -> None:
    attention, x = _attention(name), _tokens()
    other = _attention(name)
    other.load_state_dict(attention.state_dict())
    assert torch.equal(other.eval()(x, grid=GRID), attention.eval()(x, grid=GRID))


@EVERY
def test_mistakes_at_the_call_name_the_variant(name: str) -> None:
    attention, x = _attention(name), _tokens()
    mistakes: list[tuple[Tensor, dict[str, Any]]] = [
        (x[..., :-1], {"grid": GRID}),
        (x[0], {"grid": GRID}),
        (x.long(), {"grid": GRID}),
        (x, {"grid": (4, 4)}),
        (x, {"grid": (2, 2, 3)}),
        (x, {"grid": (-4, -3)}),
        (x, {"grid": ()}),
        (x, {"grid": GRID, "mask": torch.ones(2, N)}),
        (x, {"grid": GRID, "mask": torch.ones(N, dtype=torch.bool)}),
    ]
    if attention.needs_grid:
        mistakes.append((x, {}))
    for tokens, keywords in mistakes:
        with pytest.raises(ValueError, match=repr(name)):
            attention(tokens, **keywords)


@EVERY
def test_a_context_is_attended_or_refused_by_name(name: str) -> None:
    """With itself as context a variant is self-attention; another context changes every output, its padding none."""
    attention, x = _attention(name).eval(), _tokens()
    with pytest.raises(ValueError, match=f"{name}.*need a context"):
        attention(x, grid=GRID, context_grid=GRID)
    if not attention.takes_context:
        with pytest.raises(ValueError, match=f"{name}.*cross-attention"):
            attention(x, grid=GRID, context=x)
        return
    torch.testing.assert_close(attention(x, GRID, context=x), attention(x, GRID), rtol=0, atol=1e-12)
    other = _tokens(6)
    y = attention(x, grid=(N,), context=other, context_grid=(6,))
    assert (y - attention(x, grid=(N,))).abs().amax(-1).all()
    padded, mask = torch.cat([other, torch.full((2, 2, DIM), float("nan"))], 1), torch.arange(8).expand(2, 8) < 6
    same = attention(x, grid=(N,), context=padded.double(), context_grid=(8,), context_mask=mask)
    torch.testing.assert_close(same, y, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=f"{name}.*samples"):
        attention(x, grid=GRID, context=x[:1])


@EVERY
def test_mistakes_at_creation_name_the_variant(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*'memory'.*its options: "):
        create_attention(name, DIM, memory=3)
    for dim in (0, -8, 2.0):
        with pytest.raises(ValueError, match=repr(name)):
            create_attention(name, dim)  # type: ignore[arg-type]


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="unknown attention 'extrenal'.*external, multihead_external, self"):
        create_attention("extrenal", DIM)
    assert list_attentions() == list(ATTENTION)
    assert all(ATTENTION[name].name == name for name in ATTENTION)


@pytest.mark.parametrize(("name", "heads"), [("self", 3), ("multihead_external", 5), ("self", 0)])
def test_heads_must_divide_the_channels(name: str, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.*num_heads"):
        create_attention(name, DIM, num_heads=heads)


@pytest.mark.parametrize(("name", "dim"), [("sagan", 7), ("offset", 3)])
def test_maps_never_truncate_to_nothing(name: str, dim: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.*at least {dim + 1}"):
        create_attention(name, dim)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_self_attention_is_its_formula(num_heads: int) -> None:
    attention, x = _attention("self", num_heads=num_heads), _tokens()
    width = DIM // num_heads
    query, key, value = (x @ weight.T for weight in attention.get_submodule("query_key_value").weight.chunk(3))
    heads = []
    for h in range(num_heads):
        q, k, v = (part[..., h * width : (h + 1) * width] for part in (query, key, value))
        heads.append((q @ k.mT / math.sqrt(width)).softmax(-1) @ v)
    expected = torch.cat(heads, -1) @ attention.get_submodule("output").weight.T
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


def test_simplified_self_attention_is_its_formula() -> None:
    x = _tokens()
    expected = (x @ x.mT).softmax(-1) @ x
    torch.testing.assert_close(_attention("simplified_self")(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid", "cells"), [((4, 6), 6), ((5, 3), 2), ((1, 7), 3), ((9,), 4), ((1, 1), 1)])
def test_sagan_is_its_loops(grid: tuple[int, ...], cells: int) -> None:
    attention, n = _attention("sagan"), math.prod(grid)
    x = _tokens(n)
    theta, phi, g, output = (attention.get_submodule(layer).weight for layer in ("theta", "phi", "g", "output"))
    H, W = (*grid, 1)[:2]
    # A dimension of size 1 is kept; others go in steps of 2 without an odd last one.
    tops, lefts = (range(0, size - size % 2, 2) if size > 1 else range(1) for size in (H, W))
    for b in range(2):
        pooled = []
        for top in tops:
            for left in lefts:
                members = [i * W + j for i in range(top, min(top + 2, H)) for j in range(left, min(left + 2, W))]
                cell = x[b, members]
                pooled.append(((cell @ phi.T).amax(0), (cell @ g.T).amax(0)))
        assert len(pooled) == cells
        for i in range(n):
            weights = torch.stack([(theta @ x[b, i]) @ key for key, _ in pooled]).softmax(0)
            expected = output @ sum(w * value for w, (_, value) in zip(weights, pooled, strict=True))
            torch.testing.assert_close(attention(x, grid=grid)[b, i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_offset_attention_is_pcts_layer(training: bool) -> None:
    attention, x = _attention("offset").train(training), _tokens()
    assert isinstance(attention, OffsetBlock)
    query_key, value = attention.get_submodule("attention.query_key"), attention.get_submodule("attention.value")
    energy = query_key(x) @ query_key(x).mT
    weights = energy.softmax(dim=-1)
    weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
    r = (value(x).mT @ weights).mT
    hidden = attention.transform(x - r)
    if training:
        variance, mean = torch.var_mean(hidden, dim=(0, 1), correction=0)
    else:
        variance, mean = torch.ones(DIM, dtype=torch.float64), torch.zeros(DIM, dtype=torch.float64)
    expected = x + torch.relu((hidden - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@EVERY
@pytest.mark.parametrize("form", ["offset", "plain"])
def test_offset_layers_hold_any_variant(name: str, form: Any) -> None:
    layer, x = create_offset_layer(name, DIM, form).double().eval(), _tokens()
    inner = layer.attention(x, GRID)
    r = torch.zeros_like(x) if name == "none" else inner
    given = x - r if form == "offset" or name == "none" else r
    expected = x + torch.relu(layer.transform(given) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(layer(x, GRID), expected, rtol=0, atol=1e-12)
    assert isinstance(layer.attention, DoubleNormalisedAttention) == (name == "offset")


def test_offset_layers_make_the_published_totals() -> None:
    """PCT's classifier has 2,876,136 parameters; EAT exchanges its four layers of 256 channels."""
    rest = 2_876_136 - 4 * count_parameters(create_offset_layer("offset", 256))
    eat = {form: rest + 4 * count_parameters(create_offset_layer("external", 256, form)) for form in FORMS}
    assert {form: round(total / 1e6, 3) for form, total in eat.items()} == FORMS


FORMS: dict[Any, float] = {"offset": 2.679, "offset_query": 2.942, "plain": 2.679}


@pytest.mark.parametrize(
    ("name", "form", "options", "word"),
    [
        ("external", "inside_out", {}, "offset, offset_query, plain"),
        ("self", "offset_query", {}, "external"),
        ("offset", "offset", {"memory_size": 8}, "'memory_size'"),
        ("external", "offset", {"slots": 8}, "'slots'"),
    ],
)
def test_mistaken_offset_layers_are_told(name: str, form: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        create_offset_layer(name, DIM, form, **options)


def test_offset_layers_pass_options_on() -> None:
    layer = create_offset_layer("external", DIM, "offset_query", memory_size=7)
    memory = layer.attention.get_submodule("key_memory")
    assert isinstance(memory, nn.Linear)
    assert memory.out_features == 7
