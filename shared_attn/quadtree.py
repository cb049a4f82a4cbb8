"""QuadTree attention (arXiv 2201.02767): attention from coarse cells to fine ones, refined where the scores are high.

Legend: B batch, N tokens, C channels, H heads, D head width, L levels, G cells of a level in a cell of the next, n and
m cells of queries and keys, K chosen cells.

Queries, keys and values are averaged to pyramids of L levels. Every cell of the coarsest level attends to all cells
there. At each finer level the G queries of a cell attend to the G K children of the K keys that the cell scored
highest one level up, so that the cost is linear in N but for the coarsest level.

    A  the score of a key is its softmax among the G children of one parent times the parent's own score; a level's
       message leaves out the keys that the next level refines, and the messages are added
    B  the score is a softmax over all G K candidates; every level's message counts, weighted by a softmax of learnt
       level weights

The choice of keys is not differentiable; everything else is. Equal scores are chosen among arbitrarily.

Initialisation, for tokens of unit variance (all weights normal, all biases zero, level weights equal):

    query, key, value, output      1 / sqrt(C)
    value branch                   sqrt(2.35 / fan in)    E[gelu(z)^2] = 1 / 2.35 for a normal z
    positional encoding            1 / 3                  fan in 9
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, Context, check_divisible, check_positive
from shared_attn.functional import full_precision
from shared_attn.pyramid import Cells, choose_children, families, pool_levels, real_tokens

__all__ = ["QuadTreeAttentionA", "QuadTreeAttentionB"]

# A logit that no real one is near, yet finite: a softmax over padding alone is uniform instead of NaN.
_MASKED = -1e30
_CHILDREN_ON_A_GRID = 4


class _Side(NamedTuple):
    """The tokens that queries come from, or keys and values: (B, N, C), how they lie, how many are real."""

    tokens: Tensor
    cells: Cells
    counts: list[Tensor] | None


class _QuadTreeAttention(Attention):
    """What types A and B share: the maps, the pyramids of queries and keys, and the choice of keys."""

    needs_grid = True
    takes_context = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        levels: int = 4,
        topk: int | Sequence[int] = 8,
        group: int = 4,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        check_positive(self.name, levels=levels, group=group)
        if group == 1:
            raise ValueError(f"attention {self.name!r}: group must be at least 2, got 1")
        self.num_heads, self.levels, self.group = num_heads, levels, group
        self.topk = _topk_of_levels(self.name, topk, levels)
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = nn.Linear(dim, dim, bias=qkv_bias)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.output = nn.Linear(dim, dim)
        for layer in (self.query, self.key, self.value, self.output):
            _initialise(layer)

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        side = self._side(x, grid, mask)
        y: Tensor = self.output(self._attend(side, side))
        return y

    def cross_attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, context: Context, /) -> Tensor:
        y: Tensor = self.output(self._attend(self._side(x, grid, mask), self._side(*context)))
        return y

    def _attend(self, x: _Side, source: _Side) -> Tensor:
        """Queries of x on keys and values of the source: (B, N, C), before the output map."""
        raise NotImplementedError

    def _side(self, tokens: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None) -> _Side:
        """The tokens with their pyramid; a grid of one row or column is a sequence."""
        assert grid is not None
        if len(grid) > 1 and min(grid) == 1:
            grid = (tokens.shape[1],)
        if len(grid) > 1 and self.group != _CHILDREN_ON_A_GRID:
            raise ValueError(f"attention {self.name!r}: group {self.group} is for sequences, got a grid {grid}")
        cells = Cells(grid, self.levels, self.group)
        return _Side(tokens, cells, real_tokens(cells, mask, tokens))

    def _pyramid(self, x: Tensor, side: _Side) -> list[Tensor]:
        """Mapped tokens (B, N, C) averaged to every level, heads apart: (B, H, n, D), fine to coarse."""
        return pool_levels(side.cells.order(x, self.num_heads), side.counts, self.levels, self.group)

    def _messages(self, x: _Side, source: _Side, values: list[Tensor]) -> Iterator[Tensor]:
        """What the queries of each level gather, (B, H, n, D), coarse to fine. values: (B, H, m, D), fine to coarse."""
        queries = self._pyramid(self.query(x.tokens) * math.sqrt(self.num_heads / self.dim), x)
        keys = self._pyramid(self.key(source.tokens), source)
        chosen = scores = None
        for level in reversed(range(self.levels)):
            query, key, value = queries[level], keys[level], values[level]
            count = None if source.counts is None else source.counts[level]
            if chosen is None:  # one family that attends to every cell
                query, key, value = query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
                count = None if count is None else count.unsqueeze(2)
            else:
                query = families(query, self.group)  # (B, H, n, G, D)
                key, value = (choose_children(z, chosen, self.group) for z in (key, value))  # (B, H, n, K G, D)
                count = None if count is None else choose_children(count, chosen, self.group)
            logits = _logits(query, key, count)  # (B, H, n, G, K G)
            weights, best, scores = self._weigh(logits, scores, level)
            yield (weights.to(value.dtype) @ value).flatten(2, 3)
            if best is not None:
                chosen = best if chosen is None else _children_of(chosen, self.group, best)
                chosen = chosen.flatten(2, 3)

    def _weigh(self, logits: Tensor, scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights of a level's candidates, (B, H, n, G, M), which of them the next level refines, and their scores."""
        raise NotImplementedError

    def _best(self, logits: Tensor, level: int) -> Tensor | None:
        """The places of the K largest, (B, H, n, G, K): all where there are fewer, None at the finest level."""
        if level == 0:
            return None
        number = min(self.topk[self.levels - 1 - level], logits.shape[-1])
        return logits.detach().topk(number, dim=-1, sorted=False).indices


class QuadTreeAttentionA(_QuadTreeAttention):
    """QuadTree attention of type A, where a parent's score is shared out among its children.

    The scores of all keys that a token reaches, over all levels, sum to one. 4 C^2 + C parameters; 4 N C^2 + 2 M^2 C +
    2 G K C (N + N / G + ...) multiply-adds, M the cells of the coarsest level. (The released code leaves out the top K
    of a single level too; here one level is plain attention.)

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H.
        levels: L. The coarsest level attends in full, so L should leave it few cells: the paper's image classifiers
            have 7 x 7 there, that is 4 levels at 56 x 56 (LoFTR's matching has 3, STTR's stereo 4). With one level this
            is plain attention.
        topk: K, how many keys a query refines, one number for all levels or L - 1 of them from coarse to fine (the
            paper: 8 in classification, 16 then 8 in matching). All where there are fewer.
        group: G of a sequence: 4, or 8 for octree cells of points in Morton order. A grid needs 4; a grid of one row or
            column is a sequence.
        qkv_bias: biases in the query, key and value maps.

    Raises:
        ValueError: for sizes that are not positive integers, heads that do not divide the channels, a topk that fits
            neither form, or a group of 1; at the call, for a grid with another group than 4.
    """

    name = "quadtree_a"

    def _attend(self, x: _Side, source: _Side) -> Tensor:
        y = None
        for message in self._messages(x, source, self._pyramid(self.value(source.tokens), source)):
            y = message if y is None else _refined(y, message, self.group)
        assert y is not None
        return x.cells.restore(y)

    def _weigh(self, logits: Tensor, scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if scores is None:
            log_weights = logits.log_softmax(dim=-1)
        else:  # in logarithms, so that padding stays below any real key however small its score
            shares = logits.reshape(*logits.shape[:-1], -1, self.group).log_softmax(dim=-1)  # (B, H, n, G, K, G)
            parents = scores.unsqueeze(4).expand(*scores.shape, self.group).flatten(3)  # (B, H, n, K G)
            log_weights = shares.flatten(4) + parents.unsqueeze(3)
        best = self._best(log_weights, level)
        if best is None:
            return log_weights.exp(), None, None
        return log_weights.exp().scatter(-1, best, 0.0), best, log_weights.gather(-1, best).flatten(2, 3)


class QuadTreeAttentionB(_QuadTreeAttention):
    """QuadTree attention of type B, where every level's softmax message counts with a learnt weight: the paper's best.

    Values are not averaged to the coarser levels but merged by learnt branches, with group norms and GELUs; each level
    adds a depthwise 3 x 3 convolution of its values, which encodes positions. On a sequence of G = 4 a branch reads its
    2 x 2 weights row by row as the four members of a cell; the convolution's nine are the taps -4 ... 4 of a sequence.
    In cross-attention that encoding is of the queries' own tokens, whose layout the output has.

    4 C^2 + C + 10 L C + L + (L - 1) ((G + 1) C^2 + 6 C) parameters.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H.
        levels: L. The coarsest level attends in full, so L should leave it few cells: the paper's image classifiers
            have 7 x 7 there, that is 4 levels at 56 x 56 (LoFTR's matching has 3, STTR's stereo 4). With one level this
            is plain attention, plus the encoding.
        topk: K, how many keys a query refines, one number for all levels or L - 1 of them from coarse to fine (the
            paper: 8 in classification, 16 then 8 in matching). All where there are fewer.
        group: G of a sequence: 4, or 8 for octree cells of points in Morton order. A grid needs 4; a grid of one row or
            column is a sequence.
        qkv_bias: biases in the query, key and value maps.

    Raises:
        ValueError: for sizes that are not positive integers, heads that do not divide the channels, a topk that fits
            neither form, or a group of 1; at the call, for a grid with another group than 4.
    """

    name = "quadtree_b"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        levels: int = 4,
        topk: int | Sequence[int] = 8,
        group: int = 4,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, levels, topk, group, qkv_bias)
        self.level_weights = nn.Parameter(torch.zeros(levels))
        self.positions = nn.ModuleList(_PositionalEncoding(dim) for _ in range(levels))
        self.value_branches = nn.ModuleList(_ValueBranch(dim, group) for _ in range(levels - 1))

    def _attend(self, x: _Side, source: _Side) -> Tensor:
        values = self._values(source)
        encodings = self._encodings(values if x is source else self._values(x), x.cells)
        heads = [value.reshape(*value.shape[:2], self.num_heads, -1).transpose(1, 2) for value in values]
        weights = self.level_weights.softmax(dim=0)
        y = None
        for step, message in enumerate(self._messages(x, source, heads)):
            weighted = weights[step] * (message + encodings[step])
            y = weighted if y is None else _refined(y, weighted, self.group)
        assert y is not None
        return x.cells.restore(y)

    def _weigh(self, logits: Tensor, _scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return logits.softmax(dim=-1), self._best(logits, level), None

    def _values(self, side: _Side) -> list[Tensor]:
        """Values in Z-order, (B, n, C), fine to coarse; zero in cells without a real token."""
        counts = [None] * self.levels if side.counts is None else [count.squeeze(1) for count in side.counts]
        values = [_without_padding(side.cells.order(self.value(side.tokens)).squeeze(1), counts[0])]
        for branch, fine, coarse in zip(self.value_branches, counts, counts[1:], strict=False):
            values.append(branch(values[-1], fine, coarse))
        return values

    def _encodings(self, values: list[Tensor], cells: Cells) -> list[Tensor]:
        """The depthwise convolution of each level's values, (B, H, n, D), coarse to fine."""
        encodings = []
        for position, value in zip(reversed(self.positions), values, strict=True):
            laid_out = cells.restore(value.unsqueeze(1))
            encodings.append(cells.order(position(laid_out, cells.grid), self.num_heads))
            cells = cells.coarser()
        return encodings[::-1]


class _PositionalEncoding(nn.Conv2d):
    """A depthwise 3 x 3 convolution on tokens (B, N, C); on a sequence its nine weights are the taps -4 ... 4."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        _initialise(self)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        if len(grid) == 1:
            taps = self.weight.reshape(-1, 1, 1, 9)
            y = F.conv2d(x.mT.unsqueeze(2), taps, self.bias, padding=(0, 4), groups=x.shape[2])
        else:
            y = super().forward(x.reshape(x.shape[0], *grid, -1).permute(0, 3, 1, 2))
        return y.flatten(2).mT


class _ValueBranch(nn.Module):
    """From the values of a level to those of the next: norm, GELU, a map of a cell's G children, norm, GELU, a map.

    The norms are over all real cells and channels of a sample (one group).
    """

    def __init__(self, dim: int, group: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.merge = nn.Conv2d(dim, dim, (2, 2) if group == _CHILDREN_ON_A_GRID else (1, group))
        self.merged_norm = nn.GroupNorm(1, dim)
        self.map = nn.Linear(dim, dim)
        self.group = group
        for layer in (self.merge, self.map):
            _initialise(layer, gain=2.35**0.5)

    def forward(self, x: Tensor, fine: Tensor | None, coarse: Tensor | None) -> Tensor:
        """(B, n, C) -> (B, n / G, C). fine, coarse: real tokens in the cells of either level, (B or 1, n, 1)."""
        x = _without_padding(F.gelu(_normalise(self.norm, x, fine)), fine)
        x = x.reshape(x.shape[0], x.shape[1] // self.group, -1)  # (B, n / G, G C)
        x = F.linear(x, self.merge.weight.flatten(2).transpose(1, 2).flatten(1), self.merge.bias)
        x = self.map(F.gelu(_normalise(self.merged_norm, x, coarse)))
        return _without_padding(x, coarse)


def _normalise(norm: nn.GroupNorm, x: Tensor, count: Tensor | None) -> Tensor:
    """Group norm with one group on (B, n, C), over the cells with real tokens, in at least float32."""
    with full_precision(x):
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        if count is None:
            variance, mean = torch.var_mean(precise, dim=(1, 2), correction=0, keepdim=True)
        else:
            real = (count > 0).to(precise.dtype)
            number = x.shape[2] * real.sum(dim=1, keepdim=True).clamp(min=1)
            mean = (precise * real).sum(dim=(1, 2), keepdim=True) / number
            variance = ((precise - mean) * real).square().sum(dim=(1, 2), keepdim=True) / number
        scale = norm.weight * (variance + norm.eps).rsqrt()  # (B, 1, C)
        return torch.addcmul(norm.bias - mean * scale, precise, scale).to(x.dtype)


def _logits(query: Tensor, key: Tensor, count: Tensor | None) -> Tensor:
    """Products in at least float32, masked at keys without real tokens; count: (..., M, 1)."""
    logits = query @ key.mT
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if count is None else logits.masked_fill(count.mT == 0, _MASKED)


def _children_of(chosen: Tensor, group: int, best: Tensor) -> Tensor:
    """Cells in place of places: chosen parents (B, H, n, K), best of their K G children (B, H, n, G, K')."""
    children = chosen.unsqueeze(-1) * group + torch.arange(group, device=chosen.device)  # (B, H, n, K, G)
    children = children.flatten(3).unsqueeze(3)
    return children.expand(-1, -1, -1, best.shape[3], -1).gather(-1, best)


def _refined(coarse: Tensor, fine: Tensor, group: int) -> Tensor:
    """A coarse level's message in each of its children, (B, H, n, D), added to theirs, (B, H, G n, D)."""
    return (families(fine, group) + coarse.unsqueeze(3)).flatten(2, 3)


def _without_padding(x: Tensor, count: Tensor | None) -> Tensor:
    return x if count is None else x.masked_fill(count == 0, 0)


def _topk_of_levels(name: str, topk: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """K of every level but the finest, coarse to fine."""
    numbers = tuple(topk) if isinstance(topk, Sequence) else (topk,) * (levels - 1)
    if len(numbers) != levels - 1:
        raise ValueError(
            f"attention {name!r}: topk must be one number, or {levels - 1} for {levels} levels; got {topk}"
        )
    for number in numbers:
        check_positive(name, topk=number)
    return numbers


def _initialise(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights normal with a standard deviation of gain / sqrt(fan in), biases zero."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
