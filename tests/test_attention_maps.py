"""Attention maps recorded in whole networks, and the choice of slots to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointcloud.encoder import PointEncoder
from shared_attn import create_attention
from shared_attn.attention_maps import (
    Slot,
    choose_slots,
    external_attention_map,
    record_attention_maps,
    select_layer,
    select_slots,
)
from shared_attn.external import ExternalAttention, ExternalAttentionBlock, MultiHeadExternalAttention
from shared_attn.functional import external_attention

MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def three_steps(x: Tensor, keys: Tensor, real: Tensor, eps: float) -> Tensor:
    """The map of one sample by the paper's algorithm 1, number by number: (N, C), (S, C), (N,) -> (N, S)."""
    N, S = len(x), len(keys)
    logits = [
        [sum(float(a) * float(b) for a, b in zip(x[n], keys[s], strict=True)) for s in range(S)] for n in range(N)
    ]
    share = torch.zeros(N, S, dtype=torch.float64)
    for s in range(S):
        mass = sum(math.exp(logits[n][s]) for n in range(N) if real[n])
        for n in range(N):
            share[n, s] = math.exp(logits[n][s]) / mass if real[n] else 0
    for n in range(N):
        if real[n]:
            share[n] /= eps + float(share[n].sum())
    return share


@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_map_is_the_papers_three_steps(eps: float, masked: bool) -> None:
    x, keys = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    mask = MASK if masked else None
    values = external_attention_map(x, keys, mask=mask, eps=eps)
    for sample in range(2):
        real = MASK[sample] if masked else torch.ones(5, dtype=torch.bool)
        torch.testing.assert_close(values[sample], three_steps(x[sample], keys, real, eps), rtol=1e-12, atol=1e-14)
    values_memory = torch.randn(6, 3, dtype=torch.float64)
    y = external_attention(x, keys, values_memory, mask=mask, eps=eps)
    torch.testing.assert_close(values @ values_memory.T, y, rtol=1e-12, atol=1e-13)


def test_maps_stay_finite_and_float32() -> None:
    x, keys = torch.tensor([[[300.0], [-300.0]]]), torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(external_attention_map(x, keys), torch.eye(2)[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert external_attention_map(x.bfloat16(), keys).dtype == torch.float32
    nothing = external_attention_map(x, keys, mask=torch.zeros(1, 2, dtype=torch.bool))
    assert (nothing == 0).all()


def output_from_map(module: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """What a module's output is, given its map."""
    if isinstance(module, ExternalAttentionBlock):
        inner = output_from_map(module.attention, x, values)
        return torch.relu(x + module.norm(inner.flatten(0, 1)).view_as(x))
    if isinstance(module, MultiHeadExternalAttention):
        return module.output(module.value_memory(values).flatten(2))
    assert isinstance(module, ExternalAttention)
    y = module.value_memory(values)
    return y if module.output is None else module.output(y)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "memory": lambda: ExternalAttention(8, 5),
    "query": lambda: ExternalAttention(8, 5, "query", query_bias=True),
    "folded": lambda: ExternalAttention(8, 5, "projected", query_bias=True, fold="always"),
    "unfolded": lambda: ExternalAttention(8, 5, "projected", query_bias=True, fold="never"),
    "eps": lambda: ExternalAttention(8, 5, eps=0.2),
    "block": lambda: ExternalAttentionBlock(8, 5),
    "unfolded block": lambda: ExternalAttentionBlock(8, 5, fold="never"),
    "multi-head": lambda: MultiHeadExternalAttention(8, num_heads=2, memory_size=5, expansion=2),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", list(MODULES))
def test_recorded_map_times_values_is_the_output(name: str, training: bool, masked: bool) -> None:
    module = MODULES[name]().double().train(training)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, mask = torch.randn(2, 5, 8, dtype=torch.float64), MASK if masked else None
    before = module(x, mask=mask)
    with record_attention_maps(nn.ModuleDict({"a": nn.Sequential(module)})) as maps:
        y = module(x, (5,), mask=mask)
    assert torch.equal(before, y)
    attention = maps["a.0"]
    assert list(maps) == ["a.0"] and attention.grid == (5,) and not attention.values.requires_grad
    assert attention.values.shape == ((2, 5, 4, 5) if name == "multi-head" else (2, 5, 5))
    if name != "eps":
        real = MASK if masked else torch.ones(2, 5, dtype=torch.bool)
        torch.testing.assert_close(attention.values[real].sum(-1), torch.ones_like(attention.values[real][..., 0]))
    if masked:
        assert (attention.values[~MASK] == 0).all()
        if training and "block" in name:
            return  # its batch norm's statistics are of the real tokens alone
        y, expected = y[MASK], output_from_map(module, x * MASK[..., None], attention.values)[MASK]
    else:
        expected = output_from_map(module, x, attention.values)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)


def test_folded_and_unfolded_maps_are_equal() -> None:
    folded = ExternalAttention(8, 5, "projected", query_bias=True, fold="always").double()
    unfolded = ExternalAttention(8, 5, "projected", query_bias=True, fold="never").double()
    unfolded.load_state_dict(folded.state_dict())
    nn.init.normal_(unfolded.query.bias)  # type: ignore[union-attr]
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    recorded = []
    for module in (folded, unfolded):
        with record_attention_maps(module) as maps:
            module(x)
        recorded.append(maps[""].values)
    by_hand = external_attention_map(unfolded.query(x), unfolded.key_memory.weight)  # type: ignore[misc]
    torch.testing.assert_close(recorded[0], recorded[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(recorded[1], by_hand, rtol=1e-10, atol=1e-12)


def test_hooks_are_gone_afterwards() -> None:
    network = nn.Sequential(ExternalAttention(8, 5), ExternalAttentionBlock(8, 5), ExternalAttention(8, 5))
    x = torch.randn(1, 4, 8)
    with pytest.raises(RuntimeError, match="halt"), record_attention_maps(network) as maps:
        network(x)
        raise RuntimeError("halt")
    assert list(maps) == ["0", "1", "2"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    first = maps["0"].values
    network(x + 1)
    assert maps["0"].values is first
    with record_attention_maps(network) as maps:  # the latest call counts
        network(x + 1)
        network(x)
    assert torch.equal(maps["0"].values, first)
    assert select_layer(maps) is maps["2"] and select_layer(maps, 1) is maps["0"]
    for layer in (0, 4, -1):
        with pytest.raises(ValueError, match=f"--layer {layer}: expected 1 to 3"):
            select_layer(maps, layer)


@pytest.mark.parametrize("name", ["self", "sagan", "offset", "none"])
def test_attention_without_slots_is_refused_by_name(name: str) -> None:
    encoder = PointEncoder(attention=name, neighbour_channels=(), num_centres=(), embed_channels=(8,))
    for network in (create_attention(name, 8), encoder):
        said = "no attention to show" if name == "none" else f"'{name}' has no memory slots"
        with (
            pytest.raises(ValueError, match=f"{said}.*of external, multihead_external"),
            record_attention_maps(network),
        ):
            pass


def test_slots_that_vary_most_and_repeat_nothing_come_first() -> None:
    wave, other = torch.randn(2, 50, 1), torch.randn(2, 50, 1)
    level = torch.tensor([[[5.0]], [[-5.0]]]).expand(2, 50, 1)  # differs between the samples only
    values = torch.cat([level, 0.1 * torch.randn(2, 50, 1), 3 * wave, 2.9 * wave, other], dim=-1)
    assert [slot.number for slot in choose_slots(values, 4)] == [2, 4, 1, 3]  # 3 repeats 2, 0 never varies
    assert [slot.number for slot in choose_slots(values, 99)] == [2, 4, 1, 3, 0]
    assert choose_slots(values, 1, slots=[0, 3, 0]) == [Slot(0), Slot(3)]
    torch.testing.assert_close(select_slots(values, [Slot(4), Slot(0)]), values[..., [4, 0]])

    heads = torch.stack([0.5 * values, values.roll(1, -1)], dim=2)  # (B, N, H, S)
    assert choose_slots(heads, 2) == [Slot(3, 1), Slot(0, 1)]
    assert choose_slots(heads, 2, heads=[0]) == [Slot(2, 0), Slot(4, 0)]
    assert choose_slots(heads, 2, slots=[2, 3]) == [Slot(2, 0), Slot(3, 1)]
    assert choose_slots(heads, 2, slots=[2], heads=[1, 0]) == [Slot(2, 1), Slot(2, 0)]
    torch.testing.assert_close(select_slots(heads, [Slot(3, 1)])[..., 0], heads[:, :, 1, 3])
    assert [str(slot) for slot in (Slot(3), Slot(3, 1))] == ["slot 3", "head 1 slot 3"]


def test_slots_out_of_range() -> None:
    values = torch.rand(1, 4, 2, 3)
    with pytest.raises(ValueError, match="--slots 3: expected 0 to 2"):
        choose_slots(values, 1, slots=[3])
    with pytest.raises(ValueError, match="--heads -1: expected 0 to 1"):
        choose_slots(values, 1, heads=[-1])
    with pytest.raises(ValueError, match="--num-slots 0"):
        choose_slots(values, 0)
    with pytest.raises(ValueError, match="--heads 0: .* single head"):
        choose_slots(values[:, :, 0], 1, heads=[0])


@pytest.mark.parametrize("layout", [{}, {"num_centres": ()}, {"neighbour_channels": (), "num_centres": ()}])
@pytest.mark.parametrize("attention", ["external", "sagan"])
def test_token_indices_say_where_the_tokens_stand(attention: str, layout: dict[str, Any]) -> None:
    """The position embedding sees the tokens' coordinates in the order of the attention layers."""
    widths = {"embed_channels": (8,), "neighbour_channels": (12, 16), "num_centres": (20, 10), **layout}
    encoder = PointEncoder(
        attention=attention, num_layers=1, num_neighbours=3, position_embedding=True, **widths
    ).eval()
    points, seen = torch.randn(2, 30, 3), []
    assert encoder.position is not None
    encoder.position.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    encoder(points)
    indices = encoder.token_indices(points)
    assert torch.equal(seen[0], points.gather(1, indices[..., None].expand(-1, -1, 3)))
