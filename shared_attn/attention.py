"""The one call that every attention variant has, and the checks of its arguments.

Legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Attention", "Context", "check_divisible", "check_options", "check_positive"]


class Context(NamedTuple):
    """A second set of tokens to attend to, checked: (B, M, C), its layout and its mask, padding zeroed."""

    tokens: Tensor
    grid: tuple[int, ...] | None
    mask: Tensor | None


class Attention(nn.Module):
    """Base of the variants: `attention(x, grid=None, mask=None)`, (B, N, C) in and out.

    A variant sets `name` and implements `attend`, which sees checked arguments: `grid` is a tuple whose product is N
    (never None where `needs_grid`), and where there is a `mask` the padding of x is zero already and the output's
    padding is set to zero after. A variant that cannot leave padding out of its sums sets `takes_mask = False`; one
    whose paper defines cross-attention sets `takes_context = True` and implements `cross_attend` too.

    Args:
        dim: channels C of the tokens.

    Raises:
        ValueError: at the call, for tokens that are not floating-point (B, N, dim), a grid that does not hold N tokens
            or is missing, a mask that is not bool (B, N) or not supported, and the same of a context, or any context
            where the variant has no cross-attention; the message names the variant.
    """

    name: ClassVar[str]
    needs_grid: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = True
    takes_context: ClassVar[bool] = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_positive(self.name, dim=dim)
        self.dim = dim

    def forward(
        self,
        x: Tensor,
        grid: Sequence[int] | None = None,
        mask: Tensor | None = None,
        *,
        context: Tensor | None = None,
        context_grid: Sequence[int] | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends.

        Args:
            x: (B, N, C) tokens.
            grid: their layout, (H, W) row by row or (N,) for a sequence.
            mask: (B, N) bool, True = real. Masked tokens influence nothing, and their outputs are zero.
            context: (B, M, C) tokens to attend to instead of x (cross-attention).
            context_grid: the context's layout; by default that of x where M = N.
            context_mask: (B, M) bool, True = real.

        Returns:
            (B, N, C).
        """
        x, layout, mask = self._check(x, grid, mask)
        if context is None:
            if context_grid is not None or context_mask is not None:
                raise ValueError(f"attention {self.name!r}: context_grid and context_mask need a context")
            y = self.attend(x, layout, mask)
        else:
            y = self.cross_attend(x, layout, mask, self._check_context(x, layout, context, context_grid, context_mask))
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)

    def gated_residual(
        self, x: Tensor, gate: Tensor, grid: Sequence[int] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x + gate * attention(x); a variant whose kernels do both at once overrides it. gate: one number, (1,)."""
        return torch.addcmul(x, gate, self(x, grid, mask))

    def attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        """The variant's own computation on checked arguments."""
        raise NotImplementedError

    def cross_attend(self, x: Tensor, grid: tuple[int, ...] | None, mask: Tensor | None, context: Context, /) -> Tensor:
        """The same with queries from x, keys and values from the context."""
        raise NotImplementedError

    def _check_context(
        self,
        x: Tensor,
        grid: tuple[int, ...] | None,
        context: Tensor,
        context_grid: Sequence[int] | None,
        context_mask: Tensor | None,
    ) -> Context:
        if not self.takes_context:
            raise ValueError(f"attention {self.name!r} has no cross-attention; pass context=None")
        if context.dim() == 3 and context.shape[0] != x.shape[0]:
            raise ValueError(
                f"attention {self.name!r}: the context has {context.shape[0]} samples, the tokens {x.shape[0]}"
            )
        if context_grid is None and context.dim() == 3 and context.shape[1] == x.shape[1]:
            context_grid = grid
        return Context(*self._check(context, context_grid, context_mask, what="context"))

    def _check(
        self, x: Tensor, grid: Sequence[int] | None, mask: Tensor | None, *, what: str = "tokens"
    ) -> tuple[Tensor, tuple[int, ...] | None, Tensor | None]:
        """The arguments as `attend` expects them: padding zeroed, the grid a tuple."""
        owner = f"attention {self.name!r}"
        if x.dim() != 3 or x.shape[2] != self.dim or not x.is_floating_point():
            raise ValueError(f"{owner}: expected floating-point {what} of shape (B, N, {self.dim}), got {_describe(x)}")
        if mask is not None:
            if not self.takes_mask:
                raise ValueError(f"{owner} cannot honour a mask; pass mask=None")
            if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
                raise ValueError(f"{owner}: expected a bool mask of shape {tuple(x.shape[:2])}, got {_describe(mask)}")
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        if grid is None:
            if self.needs_grid:
                raise ValueError(f"{owner} needs the grid of its {what}: (H, W), or (N,) for a sequence")
            return x, None, mask
        layout = tuple(grid)
        if len(layout) not in (1, 2) or min(layout) < 1 or math.prod(layout) != x.shape[1]:
            raise ValueError(f"{owner}: grid {layout} does not lay out {x.shape[1]} {what} as (H, W) or (N,)")
        return x, layout, mask


def check_positive(owner: str, **values: int) -> None:
    """Raises ValueError where a named value is not a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"attention {owner!r}: {name} must be a positive integer, got {value!r}")


def check_divisible(owner: str, dim: int, num_heads: int) -> None:
    """Raises ValueError where the channels cannot be split evenly among the heads."""
    check_positive(owner, num_heads=num_heads)
    if dim % num_heads:
        raise ValueError(f"attention {owner!r}: dim {dim} is not divisible by num_heads {num_heads}")


def check_options(
    owner: str, factory: Callable[..., object], options: Collection[str], *, given: Collection[str] = ()
) -> None:
    """Raises ValueError for an option that `factory` has not, or lacks, listing those it has beyond `given`."""
    parameters: dict[str, Any] = {
        name: parameter for name, parameter in inspect.signature(factory).parameters.items() if name not in given
    }
    known = ", ".join(parameters) or "none"
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"{owner} has no option {', '.join(map(repr, unknown))}; its options: {known}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in options]
    if missing:
        raise ValueError(f"{owner} needs {', '.join(map(repr, missing))}; its options: {known}")


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
