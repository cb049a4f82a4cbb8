"""Cross-covariance attention and XCiT's other layers, against timm's modules with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared_attn.complexity import count_multiply_adds
from shared_attn.covariance import CovarianceForm, CrossCovarianceAttention
from shared_attn.reference import load_reference
from shared_attn.xcit_layers import ClassAttention, ClassAttentionBlock, LocalPatchInteraction

xcit = pytest.importorskip("timm.models.xcit", reason="timm is not installed")

DIM, HEADS = 24, 3
FORMS: list[CovarianceForm] = ["gram", "direct"]


def _randomise(module: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its first value, so that none can be left out unseen."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if value.ndim == 3 else torch.randn_like(value) * 0.3)
    for name, value in module.named_buffers():
        if name.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
    return module.double()


def _ours_and_timms(qkv_bias: bool, form: CovarianceForm) -> tuple[CrossCovarianceAttention, nn.Module]:
    timms = _randomise(xcit.XCA(DIM, num_heads=HEADS, qkv_bias=qkv_bias))
    ours = load_reference("timm.xca", timms.state_dict(), dim=DIM, num_heads=HEADS, qkv_bias=qkv_bias).double()
    assert isinstance(ours, CrossCovarianceAttention)
    ours.form = form
    return ours, timms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_both_forms_are_timms_with_gradients(form: CovarianceForm, qkv_bias: bool, tokens: int) -> None:
    ours, timms = _ours_and_timms(qkv_bias, form)
    x = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), timms(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    names = {"query_key_value": "qkv", "output": "proj"}
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        other = timms.get_parameter(f"{names[module]}.{kind}" if module else name)
        (grad,) = torch.autograd.grad(y.sin().sum(), parameter, retain_graph=True)
        (expected_grad,) = torch.autograd.grad(expected.sin().sum(), other, retain_graph=True)
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10, msg=name)
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    (expected_grad,) = torch.autograd.grad(expected.sin().sum(), x)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_padding_shifts_nothing_though_the_maps_have_biases(form: CovarianceForm) -> None:
    ours, timms = _ours_and_timms(True, form)
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    padded = torch.cat([x, torch.full((2, 4, DIM), 1e3, dtype=torch.float64)], dim=1)
    mask = torch.arange(13).expand(2, 13) < 9
    y = ours(padded, mask=mask)
    torch.testing.assert_close(y[:, :9], timms(x), rtol=0, atol=1e-10)
    assert not y[:, 9:].any()


def test_the_gram_form_is_as_accurate_as_timms_in_single_precision() -> None:
    ours, timms = _ours_and_timms(True, "gram")
    x = 3 * torch.randn(2, 1000, DIM, dtype=torch.float64) + 1
    exact = timms(x)
    error = (ours.float()(x.float()) - exact).abs().max()
    assert error <= 2 * (timms.float()(x.float()) - exact).abs().max()


@pytest.mark.parametrize("tokens", [4, 16, 32, 40, 64, 500])
def test_auto_counts_the_fewer_multiply_adds(tokens: int) -> None:
    counts = {
        form: count_multiply_adds(CrossCovarianceAttention(DIM, HEADS, form=form).eval(), torch.randn(1, tokens, DIM))
        for form in ("gram", "direct", "auto")
    }
    assert counts["auto"] == min(counts["gram"], counts["direct"])
    C, D = DIM, DIM // HEADS
    assert counts["direct"] == (4 * C + 2 * D) * tokens * C
    assert counts["gram"] == 2 * tokens * C * C + 3 * C**3 + 2 * C * C * D


def test_zero_tokens_give_the_output_bias() -> None:
    ours, timms = _ours_and_timms(False, "gram")
    x = torch.zeros(1, 5, DIM, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), timms(x))
    ours(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_local_patch_interaction_is_timms(kernel_size: int, training: bool) -> None:
    timms = _randomise(xcit.LPI(DIM, kernel_size=kernel_size)).train(training)
    ours = LocalPatchInteraction(DIM, kernel_size).double().train(training)
    names = {"conv1": "first", "bn": "norm", "conv2": "second"}
    ours.load_state_dict({_renamed(name, names): value for name, value in timms.state_dict().items()})
    x = torch.randn(2, 35, DIM, dtype=torch.float64)
    torch.testing.assert_close(ours(x, grid=(5, 7)), timms(x, 5, 7), rtol=0, atol=1e-10)
    assert torch.equal(ours.norm.running_var, timms.get_buffer("bn.running_var"))


def test_local_patch_interaction_of_a_padded_sequence_is_that_of_the_sequence() -> None:
    ours = LocalPatchInteraction(DIM).double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    padded = torch.cat([x, torch.randn(2, 3, DIM, dtype=torch.float64)], dim=1)
    mask = torch.arange(9).expand(2, 9) < 6
    torch.testing.assert_close(ours(padded, grid=(9,), mask=mask)[:, :6], ours(x, grid=(6,)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel_size", [0, 2, 2.5])
def test_local_patch_interaction_needs_an_odd_kernel(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="local patch interaction.*kernel_size"):
        LocalPatchInteraction(DIM, kernel_size)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_class_attention_is_timms(qkv_bias: bool) -> None:
    timms = _randomise(xcit.ClassAttn(DIM, HEADS, qkv_bias))
    ours = ClassAttention(DIM, HEADS, qkv_bias).double()
    _load_class_attention(ours, timms)
    x = torch.randn(2, 11, DIM, dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), timms(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    grads, expected_grads = (torch.autograd.grad(value.sin().sum(), x)[0] for value in (y, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-10)


def test_class_attention_costs_two_products_with_the_tokens() -> None:
    x = torch.randn(1, 50, DIM)
    # Queries, keys and values of one vector, its map out, and logits and means of H heads.
    assert count_multiply_adds(ClassAttention(DIM, HEADS).eval(), x) == 4 * DIM * DIM + 2 * 50 * DIM * HEADS


def test_class_attention_leaves_out_padding_but_never_the_class_token() -> None:
    ours = ClassAttention(DIM, HEADS, qkv_bias=True).double()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    mask = torch.arange(9).expand(2, 9) < 6
    x[:, 6:] = float("nan")
    torch.testing.assert_close(ours(x, mask), ours(x[:, :6]), rtol=0, atol=1e-10)
    alone = ours(x, torch.zeros(2, 9, dtype=torch.bool))
    torch.testing.assert_close(alone, ours(x[:, :1]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tokens_norm", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_class_attention_block_is_timms(layer_scale: float | None, tokens_norm: bool) -> None:
    timms = _randomise(xcit.ClassAttentionBlock(DIM, HEADS, 2.0, True, eta=layer_scale, tokens_norm=tokens_norm))
    ours = ClassAttentionBlock(DIM, HEADS, 2.0, True, layer_scale, tokens_norm).double()
    names = {"norm1": "attention_norm", "norm2": "network_norm", "gamma1": "attention_scale", "gamma2": "network_scale"}
    names |= {"attn.q": "attention.query", "attn.k": "attention.key", "attn.v": "attention.value"}
    names |= {"attn.proj": "attention.output", "mlp.fc1": "network.0", "mlp.fc2": "network.2"}
    ours.load_state_dict({_renamed(name, names): value for name, value in timms.state_dict().items()})
    x = torch.randn(2, 8, DIM, dtype=torch.float64)
    torch.testing.assert_close(ours(x), timms(x), rtol=0, atol=1e-10)
    padded = torch.cat([x, torch.randn(2, 2, DIM, dtype=torch.float64)], dim=1)
    y = ours(padded, torch.arange(10).expand(2, 10) < 8)
    torch.testing.assert_close(y[:, :8], timms(x), rtol=0, atol=1e-10)
    assert not y[:, 8:].any()


def _load_class_attention(ours: ClassAttention, timms: nn.Module) -> None:
    names = {"q": "query", "k": "key", "v": "value", "proj": "output"}
    ours.load_state_dict({_renamed(name, names): value for name, value in timms.state_dict().items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    """`name` with the module or parameter that it begins with replaced."""
    for original, ours in names.items():
        if name == original or name.startswith(original + "."):
            return ours + name.removeprefix(original)
    raise KeyError(name)


def test_unknown_forms_and_heads_are_told() -> None:
    with pytest.raises(ValueError, match="form must be one of auto, gram, direct; got 'fast'"):
        CrossCovarianceAttention(DIM, HEADS, form="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cross_covariance"):
        CrossCovarianceAttention(DIM, 5)


def test_rows_of_the_attention_are_means_of_the_values() -> None:
    """Constant values come out as that constant, whatever the queries and keys: rows of A sum to one."""
    attention = CrossCovarianceAttention(DIM, HEADS).double()
    with torch.no_grad():
        attention.query_key_value.weight[2 * DIM :] = 1.0
        attention.output.weight.copy_(torch.eye(DIM))
    x: Tensor = torch.randn(1, 10, DIM, dtype=torch.float64)
    expected = x.sum(dim=2, keepdim=True).expand_as(x)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-10)
