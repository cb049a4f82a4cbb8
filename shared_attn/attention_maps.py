"""The attention maps of external attention, recorded while a whole network runs, and the choice of slots to show.

Legend: B batch, N tokens, C channels, S memory slots, H heads, D head width.

A map is what the values are weighted with: its rows, one a token, sum to 1 over the slots. Read along the tokens, a
column says where in a sample a slot is used (arXiv 2105.02358, figures 4 and 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention
from shared_attn.external import ExternalAttention, ExternalAttentionBlock, MultiHeadExternalAttention
from shared_attn.functional import external_attention, full_precision

__all__ = [
    "AttentionMap",
    "Slot",
    "choose_slots",
    "external_attention_map",
    "record_attention_maps",
    "select_layer",
    "select_slots",
]

SHOWN = (ExternalAttention, MultiHeadExternalAttention, ExternalAttentionBlock)


class AttentionMap(NamedTuple):
    """One module's map in its latest call: (B, N, S), or (B, N, H, S) with several heads, and its tokens' layout."""

    values: Tensor
    grid: tuple[int, ...] | None


class Slot(NamedTuple):
    """One column of a map: a memory slot, and the head that looks at it where there are several."""

    number: int
    head: int | None = None

    def __str__(self) -> str:
        return f"slot {self.number}" if self.head is None else f"head {self.head} slot {self.number}"


def external_attention_map(x: Tensor, keys: Tensor, *, mask: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """What `functional.external_attention` weights its values with: softmax over the tokens, then L1 over the slots.

    Args:
        x: (B, N, ..., C) tokens, or queries a head.
        keys: (S, C). A bias of the keys would cancel in the softmax over the tokens.
        mask: (B, N) bool, True = real; the rows of padding are zero.
        eps: added to the sum over the slots.

    Returns:
        (B, N, ..., S), at least float32. Rows of real tokens sum to 1 (with eps, to a little less).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with full_precision(x):  # each slot's value is its own unit vector, so the output is the weights
        return external_attention(
            x.to(dtype), keys.to(dtype), torch.eye(len(keys), dtype=dtype, device=x.device), mask=mask, eps=eps
        )


@contextmanager
def record_attention_maps(network: nn.Module) -> Iterator[dict[str, AttentionMap]]:
    """Records the maps of every external attention in a network while the block lasts; its outputs stay what they are.

        with record_attention_maps(network) as maps:
            network(images)
        maps["attention.attention"].values    # (B, N, S)

    Yields:
        A dictionary, filled at each forward: the modules' names, in the order in which they first ran, with the map of
        the latest call, detached.

    Raises:
        ValueError: where no module of the network is external attention; it names the attention there is.
    """
    modules = {name: module for name, module in network.named_modules() if isinstance(module, SHOWN)}
    # In eval mode the block never calls the attention inside it: it folds the memories itself.
    inside = {id(module.attention) for module in modules.values() if isinstance(module, ExternalAttentionBlock)}
    modules = {name: module for name, module in modules.items() if id(module) not in inside}
    if not modules:
        raise ValueError(_explain_absence(network))
    maps: dict[str, AttentionMap] = {}
    hooks = [
        module.register_forward_hook(partial(_record, maps, name), with_kwargs=True) for name, module in modules.items()
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def select_layer(maps: Mapping[str, AttentionMap], layer: int | None = None) -> AttentionMap:
    """The map of a layer, counted from 1 in the order in which the layers ran; the last by default.

    Raises:
        ValueError: there is no such layer.
    """
    recorded = list(maps.values())
    if layer is not None and not 1 <= layer <= len(recorded):
        raise ValueError(f"--layer {layer}: expected 1 to {len(recorded)}, the network's attention layers")
    return recorded[-1 if layer is None else layer - 1]


def choose_slots(values: Tensor, count: int, *, slots: Sequence[int] = (), heads: Sequence[int] = ()) -> list[Slot]:
    """The columns of a map that are worth showing.

    First the one whose weight varies most over the tokens of a sample (a slot that all tokens use alike shows nothing),
    then always the one that varies most in what those before it do not explain linearly: a column that only repeats
    another comes late. Where `slots` are given it is these, in their order, each with all of `heads`, or else with the
    head in which it varies most.

    Args:
        values: (B, N, S) or (B, N, H, S).
        count: how many, where `slots` does not say; at most as many as there are.
        slots: numbers of slots, from 0.
        heads: numbers of heads to choose from, from 0; none: all.

    Raises:
        ValueError: a number out of range, or heads where the attention has one.
    """
    if count < 1:
        raise ValueError(f"--num-slots {count}: expected at least 1")
    single = values.dim() == 3
    if heads and single:
        raise ValueError(f"--heads {heads[0]}: this attention has a single head")
    num_heads, num_slots = 1 if single else values.shape[2], values.shape[-1]
    _check_numbers("--slots", slots, num_slots)
    _check_numbers("--heads", heads, num_heads)
    allowed = list(dict.fromkeys(heads)) or list(range(num_heads))
    columns = values.reshape(*values.shape[:2], num_heads, num_slots)[:, :, allowed].flatten(2)  # (B, N, H S)
    covariance = _covariance(columns)
    if not slots:
        order = _most_varied(covariance, count)
    elif heads:
        order = [head * num_slots + slot for slot in dict.fromkeys(slots) for head in range(len(allowed))]
    else:
        best = covariance.diagonal().view(-1, num_slots).argmax(dim=0).tolist()  # (S,) heads
        order = [best[slot] * num_slots + slot for slot in dict.fromkeys(slots)]
    return [Slot(place % num_slots, None if single else allowed[place // num_slots]) for place in order]


def select_slots(values: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Their columns of a map: (B, N, S) or (B, N, H, S) -> (B, N, len(slots))."""
    columns = [
        values[:, :, slot.number] if slot.head is None else values[:, :, slot.head, slot.number] for slot in slots
    ]
    return torch.stack(columns, dim=-1)


@torch.no_grad()
def _record(
    maps: dict[str, AttentionMap],
    name: str,
    module: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    _output: Tensor,
) -> None:
    """A forward hook, so the module has checked its arguments."""
    given = dict(zip(("x", "grid", "mask"), arguments, strict=False)) | keywords
    x, grid, mask = given["x"], given.get("grid"), given.get("mask")
    if isinstance(module, ExternalAttentionBlock):
        module = module.attention
    if isinstance(module, MultiHeadExternalAttention):
        query = F.linear(x, module.query.weight, module.query.bias)
        query = query.view(*x.shape[:2], module.num_heads, -1)  # (B, N, H, D)
        values = external_attention_map(query, module.key_memory.weight, mask=mask, eps=module.eps)
    else:
        assert isinstance(module, ExternalAttention)
        values = external_attention_map(x, module.fold_maps()[0], mask=mask, eps=module.eps)
    maps[name] = AttentionMap(values.detach(), None if grid is None else tuple(grid))


def _explain_absence(network: nn.Module) -> str:
    """The names of the attention in a network, without the layers that wrap another one."""
    leaves = [
        module.name
        for module in network.modules()
        if isinstance(module, Attention) and not any(isinstance(m, Attention) for m in list(module.modules())[1:])
    ]
    there = ", ".join(repr(name) for name in dict.fromkeys(leaves) if name != "none")
    told = f"attention {there} has no memory slots to show" if there else "the network has no attention to show"
    return f"{told}; attention maps are drawn of external, multihead_external"


def _covariance(columns: Tensor) -> Tensor:
    """Of columns (B, N, K) over the tokens of each sample, summed over both: (K, K)."""
    covariance = columns.new_zeros(columns.shape[-1], columns.shape[-1], dtype=torch.float64)
    for sample in columns:  # one at a time: all at once in float64 would be the largest thing in memory
        centred = sample.double() - sample.double().mean(dim=0)
        covariance += centred.mT @ centred
    return covariance


def _most_varied(covariance: Tensor, count: int) -> list[int]:
    """The pivots of a Cholesky factorisation: the largest variance left when those before are taken out."""
    left, taken = covariance.clone(), torch.zeros(len(covariance), dtype=torch.bool)
    order: list[int] = []
    for _ in range(min(count, len(left))):
        pivot = int(left.diagonal().masked_fill(taken, float("-inf")).argmax())
        order.append(pivot)
        taken[pivot] = True
        column = left[:, pivot].clone()
        if column[pivot] > 0:
            left -= torch.outer(column, column) / column[pivot]
    return order


def _check_numbers(flag: str, numbers: Sequence[int], count: int) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"{flag} {number}: expected 0 to {count - 1}")
