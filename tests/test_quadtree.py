"""QuadTree attention against the paper's words in loops, at its limits, and with the original's numbers.

The loops know nothing of Z-orders and padding: a cell is a place with the real tokens in it, and exists if it has any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn import Attention, create_attention
from shared_attn.complexity import Cost, attention_cost
from shared_attn.pyramid import Cells
from shared_attn.reference import load_reference

DIM, HEADS = 8, 2
BOTH = pytest.mark.parametrize("name", ["quadtree_a", "quadtree_b"])
Place = tuple[int, ...]
Level = dict[Place, Tensor]


def _attention(name: str, **options: Any) -> Any:
    """In float64, with every parameter at random: biases, norms and level weights too."""
    attention = create_attention(name, DIM, **{"num_heads": HEADS, **options}).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


class Places:
    """The cells of each level that hold real tokens."""

    def __init__(self, attention: Any, grid: tuple[int, ...], mask: Tensor) -> None:
        self.grid, self.branching = grid, attention.group if len(grid) == 1 else 2
        tokens = [(t,) if len(grid) == 1 else divmod(t, grid[1]) for t in range(math.prod(grid))]
        self.of_token = {place: t for t, place in enumerate(tokens) if mask[t]}
        self.levels: list[list[Place]] = [list(self.of_token)]
        for _ in range(attention.levels - 1):
            self.levels.append(sorted({self.parent(place) for place in self.levels[-1]}))

    def parent(self, place: Place) -> Place:
        return tuple(i // self.branching for i in place)

    def children(self, level: int, place: Place) -> list[Place]:
        return [child for child in self.levels[level - 1] if self.parent(child) == place]

    def means(self, x: Tensor) -> list[Level]:
        """The mean of the real tokens in each cell of each level."""
        members: dict[Place, list[int]] = {place: [t] for place, t in self.of_token.items()}
        pyramid = []
        for level in range(len(self.levels)):
            pyramid.append({place: x[tokens].mean(0) for place, tokens in members.items()})
            if level + 1 < len(self.levels):
                above: dict[Place, list[int]] = {place: [] for place in self.levels[level + 1]}
                for place, tokens in members.items():
                    above[self.parent(place)] += tokens
                members = above
        return pyramid


def _norm(norm: Any, level: Level) -> Level:
    values = torch.stack(list(level.values()))
    mean, variance = values.mean(), values.var(correction=0)
    return {place: norm.weight * (v - mean) / (variance + 1e-5).sqrt() + norm.bias for place, v in level.items()}


def _values_of_b(attention: Any, places: Places, x: Tensor) -> list[Level]:
    values = [places.means(attention.value(x))[0]]
    for level, branch in enumerate(attention.value_branches):
        active = {place: F.gelu(v) for place, v in _norm(branch.norm, values[-1]).items()}
        merged = {}
        for place in places.levels[level + 1]:
            merged[place] = branch.merge.bias
            for child in places.children(level + 1, place):
                offset = [c - places.branching * p for c, p in zip(child, place, strict=True)]
                weight = branch.merge.weight.flatten(2)[
                    ..., offset[0] if len(offset) == 1 else 2 * offset[0] + offset[1]
                ]
                merged[place] = merged[place] + weight @ active[child]
        values.append({place: branch.map(F.gelu(v)) for place, v in _norm(branch.merged_norm, merged).items()})
    return values


def _encoding(position: Any, level: Level, place: Place) -> Tensor:
    y = position.bias
    if len(place) == 1:
        taps = {(tap - 4,): position.weight[:, 0].flatten(1)[:, tap] for tap in range(9)}
    else:
        taps = {(i - 1, j - 1): position.weight[:, 0, i, j] for i in range(3) for j in range(3)}
    for offset, weight in taps.items():
        y = y + weight * level.get(tuple(p + o for p, o in zip(place, offset, strict=True)), torch.zeros(1))
    return y


def _loops(
    attention: Any,
    x: Tensor,
    grid: tuple[int, ...],
    mask: Tensor,
    context: tuple[Tensor, tuple[int, ...], Tensor] | None = None,
) -> Tensor:
    """One sample: x (N, C), mask (N,)."""
    source, source_grid, source_mask = context or (x, grid, mask)
    own, theirs = Places(attention, grid, mask), Places(attention, source_grid, source_mask)
    queries, keys = own.means(attention.query(x)), theirs.means(attention.key(source))
    is_b, top = attention.name == "quadtree_b", attention.levels - 1
    if is_b:
        values, own_values = _values_of_b(attention, theirs, source), _values_of_b(attention, own, x)
    else:
        values = theirs.means(attention.value(source))
    width = DIM // HEADS
    y = torch.zeros_like(x)

    def descend(level: int, place: Place, h: int, candidates: list[list[Place]], scores: list[Any]) -> None:
        """Adds what a cell of queries gathers from families of keys to all its tokens, then lets its children."""
        part = slice(h * width, (h + 1) * width)
        flat = [key for family in candidates for key in family]
        logits = [torch.stack([queries[level][place][part] @ keys[level][key][part] for key in f]) for f in candidates]
        logits = [values / math.sqrt(width) for values in logits]
        if is_b:
            weights = torch.cat(logits).softmax(0)
        else:
            weights = torch.cat([score * values.softmax(0) for score, values in zip(scores, logits, strict=True)])
        refined = []
        if level:
            k = attention.topk[top - level]
            refined = weights.argsort(descending=True)[:k].tolist()
        kept = range(len(flat)) if is_b else [i for i in range(len(flat)) if i not in refined]
        message = sum((weights[i] * values[level][flat[i]][part] for i in kept), torch.zeros(width))
        if is_b:
            encoding = _encoding(attention.positions[top - level], own_values[level], place)[part]
            message = attention.level_weights.softmax(0)[top - level] * (message + encoding)
        for token, t in own.of_token.items():
            if tuple(i // own.branching**level for i in token) == place:
                y[t, part] += message
        if level:
            families = [theirs.children(level, flat[i]) for i in refined]
            for child in own.children(level, place):
                descend(level - 1, child, h, families, [weights[i] for i in refined])

    for place in own.levels[top]:
        for h in range(HEADS):
            descend(top, place, h, [theirs.levels[top]], [1])
    return attention.output(y) * mask.unsqueeze(-1)


CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((8, 4), {"levels": 3, "topk": 2}),
    ((4, 8), {"levels": 1}),
    ((5, 7), {"levels": 2, "topk": 3}),
    ((9, 6), {"levels": 3, "topk": (3, 1)}),
    ((3, 2), {"levels": 4, "topk": 1}),
    ((7, 7), {"levels": 3, "topk": 100, "qkv_bias": True}),
    ((32,), {"levels": 3, "topk": 2}),
    ((45,), {"levels": 3, "topk": (2, 4), "qkv_bias": True}),
    ((45, 1), {"levels": 2, "topk": 3}),
    ((70,), {"levels": 3, "topk": 2, "group": 8}),
    ((11,), {"levels": 3, "topk": 1, "group": 3}),
]


@BOTH
@pytest.mark.parametrize(("grid", "options"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_loops(name: str, grid: tuple[int, ...], options: dict[str, Any], masked: bool) -> None:
    attention, n = _attention(name, **options), math.prod(grid)
    x = torch.randn(2, n, DIM, dtype=torch.float64)
    mask = torch.rand(2, n) < 0.6 if masked else torch.ones(2, n, dtype=torch.bool)
    with torch.no_grad():
        y = attention(x, grid=grid, mask=mask if masked else None)
        laid_out = (n,) if 1 in grid else grid
        expected = torch.stack([_loops(attention, x[b], laid_out, mask[b]) for b in range(2)])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize(
    ("grid", "other", "group"), [((4, 6), (5, 3), 4), ((7,), (40,), 4), ((30,), (70,), 8), ((5, 5), (30,), 4)]
)
def test_cross_attention_is_its_loops(name: str, grid: tuple[int, ...], other: tuple[int, ...], group: int) -> None:
    attention = _attention(name, levels=3, topk=2, group=group)
    x, context = (torch.randn(1, math.prod(g), DIM, dtype=torch.float64) for g in (grid, other))
    mask, context_mask = (torch.rand(z.shape[:2]) < 0.7 for z in (x, context))
    with torch.no_grad():
        y = attention(x, grid, mask, context=context, context_grid=other, context_mask=context_mask)
        expected = _loops(attention, x[0], grid, mask[0], (context[0], other, context_mask[0]))
    torch.testing.assert_close(y[0], expected, rtol=0, atol=1e-12)


def _full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (query, key, value))
    return ((query @ key.mT / math.sqrt(DIM // HEADS)).softmax(-1) @ value).transpose(1, 2).flatten(2)


def test_type_a_with_one_level_is_plain_attention() -> None:
    """The original leaves out its top K here."""
    attention, x = _attention("quadtree_a", levels=1), torch.randn(2, 35, DIM, dtype=torch.float64)
    expected = attention.output(_full(attention.query(x), attention.key(x), attention.value(x)))
    torch.testing.assert_close(attention(x, grid=(5, 7)), expected, rtol=0, atol=1e-12)


def test_type_b_with_every_key_is_full_attention_at_each_level() -> None:
    """w_0 up(full coarse) + w_1 full fine, by torch's own pooling, norms and convolutions."""
    attention, x = _attention("quadtree_b", levels=2, topk=24), torch.randn(2, 96, DIM, dtype=torch.float64)

    def image(tokens: Tensor) -> Tensor:
        return tokens.mT.unflatten(2, (8, 12))

    def tokens(image: Tensor) -> Tensor:
        return image.flatten(2).mT

    query, key, value = (image(layer(x)) for layer in (attention.query, attention.key, attention.value))
    branch = attention.value_branches[0]
    merged = F.conv2d(F.gelu(branch.norm(value)), branch.merge.weight, branch.merge.bias, stride=2)
    merged = image_map(branch.map, F.gelu(branch.merged_norm(merged)))
    weights = attention.level_weights.softmax(0)
    coarse_position, fine_position = attention.positions
    pooled = (F.avg_pool2d(query, 2), F.avg_pool2d(key, 2), merged)
    coarse = _full(*(tokens(z) for z in pooled)).mT.unflatten(2, (4, 6)) + torch.nn.Conv2d.forward(
        coarse_position, merged
    )
    fine = image(_full(*(tokens(z) for z in (query, key, value)))) + torch.nn.Conv2d.forward(fine_position, value)
    expected = weights[0] * F.interpolate(coarse, scale_factor=2) + weights[1] * fine
    torch.testing.assert_close(attention(x, grid=(8, 12)), attention.output(tokens(expected)), rtol=0, atol=1e-12)


def image_map(layer: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return layer(image.movedim(1, -1)).movedim(-1, 1)


def test_costs_are_the_closed_forms() -> None:
    C, N, L, G, K = 512, 128 * 128, 4, 4, 8
    cells = [N // G**level for level in range(L)]
    common = 4 * N * C * C + 2 * cells[-1] ** 2 * C + 2 * G * K * C * sum(cells[:-1])
    assert attention_cost("quadtree_a", C, (128, 128)) == Cost(4 * C * C + C, common)
    learnt = (L - 1) * ((G + 1) * C * C + 6 * C) + 10 * L * C + L
    branches = (G + 1) * C * C * sum(cells[1:]) + 9 * C * sum(cells)
    assert attention_cost("quadtree_b", C, (128, 128)) == Cost(4 * C * C + C + learnt, common + branches)


def test_scores_of_type_a_sum_to_one() -> None:
    """Equal values come out unchanged however they are selected: the scores over all levels are a distribution."""
    attention, x = _attention("quadtree_a", levels=4, topk=(1, 3, 2)), torch.randn(2, 143, DIM, dtype=torch.float64)
    torch.nn.init.zeros_(attention.value.weight)
    attention.value.bias = torch.nn.Parameter(torch.randn(DIM, dtype=torch.float64))
    mask = torch.rand(2, 143) < 0.8
    expected = attention.output(attention.value.bias).expand(2, 143, DIM) * mask.unsqueeze(-1)
    torch.testing.assert_close(attention(x, (11, 13), mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid", "group"), [((8, 4), 4), ((5, 7), 4), ((1, 3), 4), ((50,), 4), ((50,), 8)])
def test_cells_of_a_level_are_runs_and_tokens_come_back(grid: tuple[int, ...], group: int) -> None:
    cells, n = Cells(grid, 3, group), math.prod(grid)
    places = torch.tensor([(t,) if len(grid) == 1 else divmod(t, grid[1]) for t in range(n)]) + 1
    ordered = cells.order(places.unsqueeze(0))[0, 0]
    for level in range(3):
        for run in ordered.split(group**level):
            real = run[run[:, 0] > 0] - 1  # padding is zero
            assert len((real // cells.branching**level).unique(dim=0)) <= 1
    x = torch.randn(2, n, DIM)
    assert torch.equal(cells.restore(cells.order(x, HEADS)), x)
    assert cells.order(x).shape[2] == ordered.shape[0] == math.prod(cells.blocks) * group**2


@BOTH
@pytest.mark.parametrize("rows", [1, 3])
def test_keys_gathered_in_parts_make_the_same(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large inputs are without gradients, on a CPU."""
    attention, x = _attention(name, levels=3, topk=2), torch.randn(2, 35, DIM, dtype=torch.float64)
    mask = torch.rand(2, 35) < 0.7
    expected = attention(x, (5, 7), mask)
    monkeypatch.setattr("shared_attn.quadtree._GATHERED_AT_ONCE", rows * 2 * 4 * DIM // HEADS)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, (5, 7), mask), expected, rtol=0, atol=1e-12)


@BOTH
def test_gradients_are_the_slopes_between_choices(name: str) -> None:
    attention, x = _attention(name, levels=3, topk=2), torch.randn(1, 35, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, (5, 7)), (x,), fast_mode=True)


@BOTH
def test_extreme_logits_stay_finite(name: str) -> None:
    attention = _attention(name, levels=3, topk=2).float()
    x = (1e3 * torch.randn(2, 35, DIM)).requires_grad_()
    y = attention(x, (5, 7), mask=torch.rand(2, 35) < 0.5)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_query_depends_on_the_keys_it_chose() -> None:
    """With the finest level alone and K = 1: four keys a head, beside the encoding's taps 0 ... 4."""
    attention = _attention("quadtree_b", levels=2, topk=1)
    attention.level_weights.data = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    x = torch.randn(1, 64, DIM, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(attention(x, (64,))[0, 0].sum(), x)
    assert grad[0, :5].any(dim=-1).all()
    assert 5 <= grad[0].any(dim=-1).sum() <= 5 + 4 * HEADS


@pytest.mark.parametrize("case", ["quadtree_a_a", "quadtree_b_b"])
def test_originals_numbers_are_reproduced(golden: Callable[..., Any], case: str) -> None:
    meta, state, inputs, output = golden(case)
    arguments = {key: value for key, value in meta.items() if key not in ("source", "layout", "grid")}
    per_level = [arguments["topk"]] * arguments["levels"]
    for topk in (arguments["topk"], per_level):  # the original's own form has one for the finest level too
        module = load_reference("quadtree.attention", state, **{**arguments, "topk": topk})
        with torch.no_grad():
            y = module(inputs["x"], grid=meta["grid"])
        torch.testing.assert_close(y, output, rtol=0, atol=1e-5)


def test_biased_weights_load() -> None:
    torch.manual_seed(1)
    ours = create_attention("quadtree_a", DIM, num_heads=HEADS, levels=2, qkv_bias=True)
    state = {}
    for layer in ("query", "key", "value"):
        module = ours.get_submodule(layer)
        state[f"{layer[0]}_proj.weight"] = module.get_parameter("weight")[..., None, None]
        state[f"{layer[0]}_proj.bias"] = torch.nn.init.normal_(module.get_parameter("bias"))
    state |= {f"proj.{key}": value for key, value in ours.get_submodule("output").named_parameters()}
    meta = {"dim": DIM, "num_heads": HEADS, "levels": 2, "attn_type": "A", "qkv_bias": True}
    module, x = load_reference("quadtree.attention", state, **meta), torch.randn(2, 24, DIM)
    assert torch.equal(module(x, grid=(4, 6)), ours(x, grid=(4, 6)))
    with pytest.raises(ValueError, match="attn_type must be A or B; got 'C'"):
        load_reference("quadtree.attention", state, **{**meta, "attn_type": "C"})


@BOTH
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"levels": 0}, "levels"),
        ({"topk": 0}, "topk"),
        ({"topk": (8, 8, 8, 8)}, r"topk.* 3 for 4 levels"),
        ({"topk": (8, 0, 8)}, "topk"),
        ({"group": 1}, "group"),
        ({"group": 2.0}, "group"),
    ],
)
def test_mistaken_options_are_told(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{word}"):
        create_attention(name, DIM, **options)


@BOTH
def test_octree_cells_are_for_sequences(name: str) -> None:
    attention: Attention = create_attention(name, DIM, group=8)
    with pytest.raises(ValueError, match=f"{name}.*group 8 is for sequences"):
        attention(torch.randn(1, 12, DIM), grid=(3, 4))
