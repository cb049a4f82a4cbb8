"""QuadTree attention (arXiv 2201.02767): attention from coarse cells to fine ones, refined where the scores are high.

Legend: B batch, N tokens, C channels, H heads, D head width, L levels, G cells of a level in a cell of the next, n and
m cells of queries and keys, K chosen cells, R rows of cells.

Queries, keys and values are averaged to pyramids of L levels. Every cell of the coarsest level attends to all cells
there. At each finer level the G queries of a cell attend to the G K children of the K keys that the cell scored
highest one level up, so that the cost is linear in N but for the coarsest level.

    A  the score of a key is its softmax among the G children of one parent times the parent's own score; a level's
       message leaves out the keys that the next level refines, and the messages are added
    B  the score is a softmax over all G K candidates; every level's message counts, weighted by a softmax of learnt
       level weights

The choice of keys is not differentiable; everything else is. Equal scores are chosen among arbitrarily.

Initialisation, for tokens of unit variance: all weights normal with standard deviation 1 / sqrt(fan in), all biases
zero, level weights equal; type B's layers in quadtree_values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from shared_attn.attention import Attention, Context, check_divisible, check_positive
from shared_attn.pyramid import Cells, add_to_children, children_of, families, gather_children, pool_levels, real_tokens
from shared_attn.quadtree_values import (
    CHILDREN_ON_A_GRID,
    PositionalEncoding,
    ValueBranch,
    initialise,
    without_padding,
)

__all__ = ["QuadTreeAttentionA", "QuadTreeAttentionB"]

# A logit that no real one is near, yet finite: a softmax over padding alone is uniform instead of NaN.
_MASKED = -1e30
_GATHERED_AT_ONCE = 2**20  # numbers

# A level's message; the cells that each query refines, (R, K), numbered through all samples and heads; their scores.
_Message = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Side:
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
            initialise(layer)

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
        if len(grid) > 1 and self.group != CHILDREN_ON_A_GRID:
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
            query, key, value = (z[level].flatten(0, 1) for z in (queries, keys, values))  # (B H, n or m, D)
            count = None
            if source.counts is not None:
                count = source.counts[level].expand(*keys[level].shape[:2], -1, 1).flatten(0, 1)
            if chosen is None:
                message, chosen, scores = self._attend_all(level, query, key, value, count)
            else:
                query = families(query, self.group).flatten(0, 1)  # (R, G, D)
                tables = (key.flatten(0, 1), value.flatten(0, 1), None if count is None else count.flatten(0, 1))
                message, chosen, scores = self._attend_chosen(level, query, chosen, scores, *tables)
            yield message.reshape(queries[level].shape)

    def _attend_all(self, level: int, query: Tensor, key: Tensor, value: Tensor, count: Tensor | None) -> _Message:
        """The coarsest level: queries (B H, n, D) on all keys of their head, (B H, m, D)."""
        weights, best, scores = self._weigh(_logits(query, key, count), None, level)
        first = key.shape[1] * torch.arange(key.shape[0], device=key.device).reshape(-1, 1, 1)
        return weights.to(value.dtype) @ value, _flat(None if best is None else best + first), _flat(scores)

    def _attend_chosen(
        self,
        level: int,
        query: Tensor,
        chosen: Tensor,
        scores: Tensor | None,
        key: Tensor,
        value: Tensor,
        count: Tensor | None,
    ) -> _Message:
        """A finer level: queries (R, G, D) on the children of the K cells that each row chose among all keys (M, D)."""
        rows = _rows_at_once(query, chosen)
        if rows < query.shape[0]:
            parts = [
                self._attend_chosen(level, *part, key, value, count)
                for part in zip(torch.split(query, rows), torch.split(chosen, rows), _split(scores, rows), strict=False)
            ]
            messages, refined, their_scores = zip(*parts, strict=True)
            return torch.cat(messages), _join(refined), _join(their_scores)
        key, value = gather_children(key, chosen, self.group), gather_children(value, chosen, self.group)  # (R, K G, D)
        count = None if count is None else gather_children(count, chosen, self.group)
        weights, best, scores = self._weigh(_logits(query, key, count), scores, level)
        if best is not None:
            children = children_of(chosen, self.group).unsqueeze(1)  # (R, 1, K G)
            best = children.expand(-1, self.group, -1).gather(-1, best)
        return weights.to(value.dtype) @ value, _flat(best), _flat(scores)

    def _weigh(self, logits: Tensor, scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights of a level's candidates, (R, G, M), which of them the next level refines, and their scores."""
        raise NotImplementedError

    def _best(self, logits: Tensor, level: int) -> Tensor | None:
        """The places of the K largest, (R, G, K): all where there are fewer, None at the finest level."""
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
            y = message if y is None else add_to_children(y, message, self.group)
        assert y is not None
        return x.cells.restore(y)

    def _weigh(self, logits: Tensor, scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if scores is None:
            log_weights = logits.log_softmax(dim=-1)
        else:  # in logarithms, so that padding stays below any real key however small its score
            shares = logits.reshape(*logits.shape[:-1], -1, self.group).log_softmax(dim=-1)  # (R, G, K, G)
            parents = scores.unsqueeze(-1).expand(*scores.shape, self.group).flatten(-2)  # (R, K G)
            log_weights = shares.flatten(-2) + parents.unsqueeze(1)
        best = self._best(log_weights, level)
        if best is None:
            return log_weights.exp(), None, None
        return log_weights.exp().scatter(-1, best, 0.0), best, log_weights.gather(-1, best)


class QuadTreeAttentionB(_QuadTreeAttention):
    """QuadTree attention of type B, where every level's softmax message counts with a learnt weight: the paper's best.

    Values are not averaged to the coarser levels but merged by learnt branches, with group norms and GELUs; each level
    adds a depthwise 3 x 3 convolution of its values, which encodes positions. On a sequence of G = 4 a branch reads its
    2 x 2 weights row by row as the four members of a cell; the convolution's nine are the taps -4 ... 4 of a sequence.
    In cross-attention that encoding is of the queries' own tokens, whose layout the output has.

    4 C^2 + C + 10 L C + L + (L - 1) ((G + 1) C^2 + 6 C) parameters.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads, levels, topk, group, qkv_bias: as type A; with one level this is plain attention plus the encoding.

    Raises:
        ValueError: as type A.
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
        self.positions = nn.ModuleList(PositionalEncoding(dim) for _ in range(levels))
        self.value_branches = nn.ModuleList(ValueBranch(dim, group) for _ in range(levels - 1))

    def _attend(self, x: _Side, source: _Side) -> Tensor:
        values = self._values(source)
        encodings = self._encodings(values if x is source else self._values(x), x.cells)
        heads = [value.reshape(*value.shape[:2], self.num_heads, -1).transpose(1, 2) for value in values]
        weights = self.level_weights.softmax(dim=0)
        y = None
        for step, message in enumerate(self._messages(x, source, heads)):
            weighted = weights[step] * (message + encodings[step])
            y = weighted if y is None else add_to_children(y, weighted, self.group)
        assert y is not None
        return x.cells.restore(y)

    def _weigh(self, logits: Tensor, _scores: Tensor | None, level: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return logits.softmax(dim=-1), self._best(logits, level), None

    def _values(self, side: _Side) -> list[Tensor]:
        """Values in Z-order, (B, n, C), fine to coarse; zero in cells without a real token."""
        counts = [None] * self.levels if side.counts is None else [count.squeeze(1) for count in side.counts]
        values = [without_padding(side.cells.order(self.value(side.tokens)).squeeze(1), counts[0])]
        for branch, fine, coarse in zip(self.value_branches, counts[:-1], counts[1:], strict=True):
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


def _logits(query: Tensor, key: Tensor, count: Tensor | None) -> Tensor:
    """Products in at least float32, masked at keys without real tokens; count: (..., M, 1)."""
    logits = query @ key.mT
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if count is None else logits.masked_fill(count.mT == 0, _MASKED)


def _flat(x: Tensor | None) -> Tensor | None:
    """A row of queries, (R, G, K), as a row each, (R G, K)."""
    return None if x is None else x.flatten(0, 1)


def _rows_at_once(query: Tensor, chosen: Tensor) -> int:
    """How many rows to gather keys for at a time.

    Without gradients on a CPU as many as stay in its cache: fresh memory, G K times the size of the keys, takes three
    times as long as the products. Elsewhere all of them.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query.shape[0]
    return max(1, _GATHERED_AT_ONCE // (chosen.shape[1] * query.shape[1] * query.shape[2]))


def _split(x: Tensor | None, rows: int) -> Iterable[Tensor | None]:
    return repeat(None) if x is None else torch.split(x, rows)


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real) if real else None


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
