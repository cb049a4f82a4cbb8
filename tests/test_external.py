"""External attention as modules: folding is exact, counts are the paper's, initial outputs have unit scale."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from shared_attn.attention import Attention
from shared_attn.complexity import count_multiply_adds, count_parameters
from shared_attn.external import ExternalAttention, ExternalAttentionBlock, Form, MultiHeadExternalAttention
from shared_attn.functional import external_attention_paper

DIM, SLOTS = 12, 5


def _papers_form(attention: ExternalAttention, x: Tensor, eps: float) -> Tensor:
    """Map, three steps, map: nothing folded, nothing fused."""
    x = x if attention.query is None else attention.query(x)
    y = external_attention_paper(x, attention.key_memory.weight, attention.value_memory.weight, eps=eps)
    return y if attention.output is None else attention.output(y)


def _gradients(module: nn.Module, y: Tensor, x: Tensor) -> dict[str, Tensor]:
    leaves = {"x": x, **dict(module.named_parameters())}
    return dict(zip(leaves, torch.autograd.grad(y.sin().sum(), list(leaves.values())), strict=True))


@pytest.mark.parametrize("fold", ["always", "never", "auto"])
@pytest.mark.parametrize(("form", "query_bias"), [("projected", False), ("projected", True), ("query", True)])
@pytest.mark.parametrize("eps", [0.0, 1e-9])
def test_folded_and_unfolded_are_the_papers_form(form: Form, query_bias: bool, fold: str, eps: float) -> None:
    attention = ExternalAttention(DIM, SLOTS, form, query_bias, fold, eps).double()  # type: ignore[arg-type]
    x = torch.randn(2, 9, DIM, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        y, expected = attention.train(training)(x), _papers_form(attention, x, eps)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(_gradients(attention, y, x), _gradients(attention, expected, x), rtol=0, atol=1e-10)


def test_memory_form_is_the_papers_form() -> None:
    attention = ExternalAttention(DIM, SLOTS).double()
    x = torch.randn(2, 9, DIM, dtype=torch.float64, requires_grad=True)
    y, expected = attention(x), _papers_form(attention, x, 0.0)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(_gradients(attention, y, x), _gradients(attention, expected, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["query", "projected"])
@pytest.mark.parametrize("tokens", [1, SLOTS - 1, SLOTS, SLOTS + 1, 40])
def test_training_folds_exactly_when_fewer_multiply_adds_are_counted(form: Form, tokens: int) -> None:
    x = torch.randn(1, tokens, DIM, requires_grad=True)

    def step_cost(fold: str) -> int:
        attention = ExternalAttention(DIM, SLOTS, form, fold=fold)  # type: ignore[arg-type]
        return count_multiply_adds(lambda: attention(x).sum().backward())

    folded, unfolded, chosen = step_cost("always"), step_cost("never"), step_cost("auto")
    assert chosen == min(folded, unfolded)
    assert ExternalAttention(DIM, SLOTS, form).folds(x) == (folded < unfolded)
    assert ExternalAttention(DIM, SLOTS, form).eval().folds(x)


def test_parameters_are_those_of_the_published_blocks() -> None:
    assert count_parameters(ExternalAttention(256)) == 32_768  # with the gate of a feature map 32,769
    assert count_parameters(ExternalAttention(256, form="projected")) == 163_840
    assert count_parameters(ExternalAttentionBlock(512)) == 591_360
    # EAMLP at C = 512: two maps with bias, and the memories with bias, shared by its 32 heads of width 64.
    assert count_parameters(MultiHeadExternalAttention(512)) == 2 * 512 * 2048 + 2048 + 512 + 2 * 64 * 64 + 64 + 64


@pytest.mark.parametrize("make", [ExternalAttention, MultiHeadExternalAttention])
@pytest.mark.parametrize("memory_size", [16, 64])
def test_initial_outputs_have_unit_scale(make: type[Attention], memory_size: int) -> None:
    forms = [{"form": form} for form in ("memory", "query", "projected")] if make is ExternalAttention else [{}]
    for form in forms:
        attention = make(256, memory_size=memory_size, **form)
        assert 0.6 < attention(torch.randn(2, 1024, 256)).std().item() < 1.5, form


def test_memories_share_no_storage() -> None:
    attention = ExternalAttention(DIM, SLOTS)
    keys, values = attention.key_memory.weight, attention.value_memory.weight
    before = values.clone()
    nn.init.zeros_(keys)
    assert torch.equal(values, before)


@pytest.mark.parametrize("make", [ExternalAttention, MultiHeadExternalAttention, ExternalAttentionBlock])
def test_repeating_all_tokens_changes_nothing(make: type[Attention]) -> None:
    attention = make(16).double().eval()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    if isinstance(attention, ExternalAttentionBlock):  # the published eps 1e-9 is not scaled with the tokens
        attention.attention.eps = 0.0
    torch.testing.assert_close(attention(x.repeat(1, 3, 1))[:, :9], attention(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["memory", "projected"])
def test_spectral_norm_runs_once_a_forward(form: Form) -> None:
    attention = ExternalAttention(DIM, SLOTS, form)
    x = torch.randn(2, 9, DIM)
    calls: list[str] = []
    layers = {name: layer for name, layer in attention.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        spectral_norm(layer)
        layer.parametrizations.weight[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    attention(x).sum().backward()
    assert sorted(calls) == sorted(layers)
    assert all(layer.parametrizations.weight.original.grad.any() for layer in layers.values())
    before = attention.eval()(x)
    with torch.no_grad():
        attention.key_memory.parametrizations.weight.original.copy_(torch.randn(SLOTS, DIM))
    assert not torch.allclose(before, attention(x)), "weights are read at each call, never kept"


def _random_block(training: bool) -> ExternalAttentionBlock:
    block = ExternalAttentionBlock(DIM, SLOTS).double()
    for statistic in (block.norm.running_mean, block.norm.running_var, block.norm.weight.data, block.norm.bias.data):
        statistic.uniform_(0.5, 2)
    return block.train(training)


@pytest.mark.parametrize("training", [False, True])
def test_block_is_its_layers_one_after_the_other(training: bool) -> None:
    block = _random_block(training)
    x = torch.randn(2, 9, DIM, dtype=torch.float64, requires_grad=True)
    y = block(x)
    normed = torch.nn.functional.batch_norm(
        _papers_form(block.attention, x, 1e-9).transpose(1, 2),
        None if training else block.norm.running_mean,
        None if training else block.norm.running_var,
        block.norm.weight,
        block.norm.bias,
        training,
    )
    expected = torch.relu(x + normed.transpose(1, 2))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(_gradients(block, y, x), _gradients(block, expected, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_block_takes_batch_statistics_from_real_tokens(training: bool) -> None:
    block = _random_block(training)
    twin = copy.deepcopy(block)
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    y = block(x, mask=torch.tensor([[True] * 6 + [False] * 3] * 2))
    torch.testing.assert_close(y[:, :6], twin(x[:, :6]), rtol=0, atol=1e-12)
    torch.testing.assert_close(block.state_dict(), twin.state_dict(), rtol=0, atol=1e-12)
    assert not y[:, 6:].any()


@pytest.mark.parametrize("num_heads", [1, 2])
def test_multi_head_is_the_loops(num_heads: int) -> None:
    dim, slots, expansion = 6, 3, 2
    attention = MultiHeadExternalAttention(dim, num_heads, slots, expansion).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    width = dim // num_heads
    query = attention.query(x)
    heads = []
    for h in range(expansion * num_heads):
        part = query[..., h * width : (h + 1) * width]
        logits = part @ attention.key_memory.weight.T + attention.key_memory.bias
        mass = logits.exp()
        share = mass / mass.sum(dim=1, keepdim=True)
        share = share / share.sum(dim=2, keepdim=True)
        heads.append(share @ attention.value_memory.weight.T + attention.value_memory.bias)
    expected = attention.output(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"memory_size": 0}, "memory_size"),
        ({"form": "folded"}, "memory, query, projected"),
        ({"form": "projected", "fold": "sometimes"}, "auto, always, never"),
        ({"fold": "never"}, "no map"),
        ({"query_bias": True}, "no map"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
    ],
)
def test_mistaken_options_are_told(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ExternalAttention(DIM, **options)


def test_hooks_see_the_attention_inside_a_gated_residual() -> None:
    attention, gate = ExternalAttention(DIM, SLOTS), torch.full((1,), 0.5)
    x = torch.randn(2, 9, DIM)
    expected = attention.gated_residual(x, gate)
    seen: list[Tensor] = []
    with attention.register_forward_hook(lambda _module, _arguments, output: seen.append(output)):
        torch.testing.assert_close(attention.gated_residual(x, gate), expected)
    torch.testing.assert_close(x + gate * seen[0], expected)
