"""Hamburger (arXiv 2109.04553): global context as a low-rank non-negative approximation of the tokens.

Legend: B batch, N tokens, C channels, R rank.

Between two linear maps, the "breads", stands a matrix decomposition, the "ham". The tokens after the lower bread and a
ReLU, X (N x C), are approximated by U V^T with U (N x R) coefficients and V (C x R) bases, both non-negative, by the
multiplicative updates of Lee and Seung:

    U <- U * (X V) / (U V^T V),    V <- V * (X^T U) / (V U^T U).

The gradient is the paper's one-step gradient (section 3.3): the updates run without one, and only a last update of the
coefficients, with the bases held constant, is differentiated.

Nothing but a product stands between the coefficients and the upper bread, so that the bread folds into the bases:
U (W V)^T instead of (U V^T) W^T.

Initialisation, for tokens of unit variance (weights normal, biases zero):

    lower, upper    sqrt(2 / C)    the ReLU halves the second moment
    bases           uniform in [0, 1), of unit length, drawn once when the module is made

The paper draws new bases at every call. Here they are a buffer: outputs then depend on weights and tokens alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn.attention import Attention, check_positive
from shared_attn.folding import Fold, check_fold, folds
from shared_attn.functional import full_precision

__all__ = ["HamAttention", "HamGradient"]

HamGradient = Literal["one_step", "full"]


class HamAttention(Attention):
    """A lower bread with ReLU, non-negative matrix factorisation in at least float32, and an upper bread.

    2 C^2 + 2 C parameters; with T steps (2 C^2 + (2 T + 3) C R + (2 T + 1) R^2) N + (2 T + 1) C R^2 multiply-adds,
    and (C^2 - C R) N fewer, C^2 R more, with the upper bread folded.

    Args:
        dim: channels C.
        rank: R (the paper: 64).
        steps: updates of both factors in training (the paper: 6).
        eval_steps: the same in eval mode (the paper's models: 7).
        gradient: "one_step", or "full" to differentiate every update, which needs memory for all of them.
        fold: whether the upper bread is multiplied into the bases. "auto" takes the fewer multiply-adds: where N is
            larger than R.
        eps: added to the divisors.

    Raises:
        ValueError: for sizes that are not positive integers, an unknown gradient or fold, or an eps that is not
            positive.
    """

    name = "ham"
    bases: Tensor

    def __init__(
        self,
        dim: int,
        rank: int = 64,
        steps: int = 6,
        eval_steps: int = 7,
        gradient: HamGradient = "one_step",
        fold: Fold = "auto",
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dim)
        check_positive(self.name, rank=rank, steps=steps, eval_steps=eval_steps)
        check_fold(self.name, fold)
        if gradient not in get_args(HamGradient):
            raise ValueError(f"attention {self.name!r}: gradient must be one_step or full; got {gradient!r}")
        if not eps > 0:
            raise ValueError(f"attention {self.name!r}: eps must be positive, got {eps!r}")
        self.rank, self.steps, self.eval_steps, self.eps = rank, steps, eval_steps, eps
        self.gradient, self.fold = gradient, fold
        self.lower = nn.Linear(dim, dim)
        self.upper = nn.Linear(dim, dim)
        self.register_buffer("bases", F.normalize(torch.rand(dim, rank), dim=0))
        for layer in (self.lower, self.upper):
            nn.init.normal_(layer.weight, std=(2 / dim) ** 0.5)
            nn.init.zeros_(layer.bias)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        hidden = F.relu(self.lower(x))
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)  # zero tokens are not zero after a bias
        dtype = hidden.dtype
        with full_precision(x):
            hidden = hidden.to(torch.promote_types(dtype, torch.float32))
            coefficients, bases = self._factorise(hidden, mask)
            coefficients, bases = coefficients.to(dtype), bases.to(dtype)
        if self.folds(x.shape[1]):
            rows = F.linear(bases.mT, self.upper.weight)  # (B, R, C)
            return (coefficients @ rows).add(self.upper.bias)
        y: Tensor = self.upper(coefficients @ bases.mT)
        return y

    def folds(self, tokens: int) -> bool:
        """Whether the upper bread is folded for samples of this many tokens."""
        C, R = self.dim, self.rank
        return folds(self.fold, C * R * (C + tokens), tokens * C * (C + R))

    def _factorise(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coefficients (B, N, R), zero for padding, and bases (B, C, R) of non-negative tokens (B, N, C)."""
        if self.gradient == "full":
            return self._update_coefficients(hidden, *self._iterate(hidden, mask))
        with torch.no_grad():
            coefficients, bases = self._iterate(hidden.detach(), mask)
        return self._update_coefficients(hidden, coefficients, bases)

    def _iterate(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        bases = self.bases.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        coefficients = (hidden @ bases).softmax(dim=2)
        if mask is not None:
            coefficients = coefficients.masked_fill(~mask.unsqueeze(-1), 0)
        for _ in range(self.steps if self.training else self.eval_steps):
            coefficients, _ = self._update_coefficients(hidden, coefficients, bases)
            divisor = bases @ (coefficients.mT @ coefficients)  # (B, C, R)
            bases = bases * (hidden.mT @ coefficients) / (divisor + self.eps)
        return coefficients, bases

    def _update_coefficients(self, hidden: Tensor, coefficients: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        divisor = coefficients @ (bases.mT @ bases)  # (B, N, R)
        return coefficients * (hidden @ bases) / (divisor + self.eps), bases
