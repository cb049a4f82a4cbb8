"""Double attention (A2-Net, arXiv 1810.11579): gather features into a few descriptors, distribute them to the tokens.

Legend: B batch, N tokens, C channels, M maps (the paper's c_n), F features (c_m).

Each of M gathering maps is a softmax over the **tokens** and makes one descriptor, a weighted mean of the features;
each token then mixes the descriptors with a softmax over the **maps** (the paper's eq. 5 and 6):

    G = softmax_N(x W_gather^T)^T (x W_feature^T),    y = softmax_M(x W_distribute^T) G W_output^T.

The feature and output maps are linear with nothing between them and the two products, so both fold into the
descriptors: (S^T X) W_feature^T W_output^T, M rows instead of N.

Initialisation: all weights normal with standard deviation 1 / sqrt(fan in), no biases. (A bias of the gathering map
would cancel in the softmax over the tokens.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_attn.attention import Attention, check_positive
from shared_attn.folding import Fold, check_fold, folds
from shared_attn.functional import full_precision

__all__ = ["DoubleAttention"]


class DoubleAttention(Attention):
    """A2: softmax over the tokens to gather, softmax over the maps to distribute.

    2 C (M + F) parameters. (2 C (M + F) + 2 M F) N multiply-adds, or 4 N C M + 2 C M F with the two maps folded: the
    same function, gradients included.

    Args:
        dim: channels C.
        num_maps: M, by default C as in the external-attention paper's comparison (A2-Net itself takes C / 4).
        feature_size: F, by default C (A2-Net: C / 4).
        fold: whether the feature and output maps are multiplied into the descriptors. "auto" takes the fewer
            multiply-adds.

    Raises:
        ValueError: for sizes that are not positive integers, or an unknown fold.
    """

    name = "double"

    def __init__(
        self, dim: int, num_maps: int | None = None, feature_size: int | None = None, fold: Fold = "auto"
    ) -> None:
        super().__init__(dim)
        num_maps = dim if num_maps is None else num_maps
        feature_size = dim if feature_size is None else feature_size
        check_positive(self.name, num_maps=num_maps, feature_size=feature_size)
        check_fold(self.name, fold)
        self.num_maps, self.feature_size, self.fold = num_maps, feature_size, fold
        self.gather = nn.Linear(dim, num_maps, bias=False)
        self.distribute = nn.Linear(dim, num_maps, bias=False)
        self.feature = nn.Linear(dim, feature_size, bias=False)
        self.output = nn.Linear(feature_size, dim, bias=False)
        for layer in (self.gather, self.distribute, self.feature, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        gathering, distributing = self.gather(x), self.distribute(x)  # (B, N, M)
        dtype = gathering.dtype
        with full_precision(x):
            gathering = gathering.to(torch.promote_types(dtype, torch.float32))
            if mask is not None:
                attendable = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over no token would be NaN
                gathering = gathering.masked_fill(~attendable.unsqueeze(-1), float("-inf"))
            gathering = gathering.softmax(dim=1).to(dtype)
            distributing = distributing.to(torch.promote_types(dtype, torch.float32)).softmax(dim=2).to(dtype)
        if self.folds(x.shape[1]):
            y: Tensor = distributing @ self.output(self.feature(gathering.mT @ x))
        else:
            y = self.output(distributing @ (gathering.mT @ self.feature(x)))
        return y

    def folds(self, tokens: int) -> bool:
        """Whether the feature and output maps are folded for samples of this many tokens."""
        C, M, F = self.dim, self.num_maps, self.feature_size
        return folds(self.fold, 2 * C * M * (tokens + F), 2 * F * tokens * (C + M))
