"""Whether a linear map is applied to the tokens or multiplied into a neighbouring matrix first.

Both are the same function; which one takes fewer multiply-adds depends on how many tokens there are.
"""

from __future__ import annotations

from typing import get_args

import torch

from shared_attn.external import Fold

__all__ = ["Fold", "check_fold", "costs_less", "folds"]


def check_fold(owner: str, fold: str) -> None:
    """Raises ValueError where `fold` is not one of auto, always, never."""
    if fold not in get_args(Fold):
        raise ValueError(f"attention {owner!r}: fold must be one of {', '.join(get_args(Fold))}; got {fold!r}")


def folds(fold: Fold, folded: int, plain: int) -> bool:
    """Whether to fold, given the multiply-adds of either way."""
    return costs_less(folded, plain) if fold == "auto" else fold == "always"


def costs_less(first: int, second: int) -> bool:
    """Whether the first count of multiply-adds is at most the second.

    A graph exported for any number of tokens holds one way only: the first, which is the one for many tokens.
    """
    if isinstance(first, torch.SymInt) or isinstance(second, torch.SymInt):
        return True
    return first <= second
