"""Performer's attention, FAVOR+ (arXiv 2009.14794): softmax attention estimated by positive random features.

Legend: B batch, N tokens, M tokens attended to (N, or a context's), C channels, H heads, D head width, F features.

With q and k scaled by D^(-1/4) and rows w of F random features, exp(q^T k) = E_w[phi(q) phi(k)] for

    phi(z) = exp(w^T z - |z|^2 / 2),    w ~ N(0, 1),

so that softmax attention is linear attention with F features: y_n = phi(q_n)^T sum_m phi(k_m) v_m^T / normaliser. The
rows are orthogonal in blocks of D (lemma 4 and theorem 2 of the paper: less variance), their lengths those of normal
vectors. The exponent is shifted by its largest value, over the features for a query, over features and tokens for the
keys of a head, and `eps` is added to each feature, as in the paper's code and in performer-pytorch.

Adding eps to every feature is adding a matrix of rank one to every product, so it is done there and not N F times.

Initialisation: all weights normal with standard deviation 1 / sqrt(fan in), no biases.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shared_attn.attention import Attention, Context, check_divisible, check_positive
from shared_attn.functional import full_precision

__all__ = ["PerformerAttention", "orthogonal_features"]


class PerformerAttention(Attention):
    """Softmax attention by orthogonal positive random features, linear in N.

    4 C^2 parameters; (4 C^2 + 4 C F + H F) N multiply-adds where N = M. Features are made in at least float32.

    The features are a buffer, drawn when the module is made: the same in training and in eval mode, and saved with the
    weights. The paper redraws them now and then while training, so that no bad draw stays: call `redraw_features()`
    between steps. Nothing is redrawn by itself, which a compiled or exported graph could not do.

    Args:
        dim: channels C, divisible by num_heads.
        num_heads: heads H.
        num_features: F, by default D ln D (the paper's theorem 4; 266 for D = 64), but at least 2 D: a single feature
            cancels between numerator and normaliser.
        eps: added to each feature (1e-4 in performer-pytorch). With 0 the normaliser may underflow.

    Raises:
        ValueError: for heads that do not divide the channels, a number of features that is not a positive integer, or
            an eps that is not positive.
    """

    name = "performer"
    takes_context = True
    features: Tensor

    def __init__(self, dim: int, num_heads: int = 8, num_features: int | None = None, eps: float = 1e-4) -> None:
        super().__init__(dim)
        check_divisible(self.name, dim, num_heads)
        width = dim // num_heads
        num_features = max(int(width * math.log(width)), 2 * width) if num_features is None else num_features
        check_positive(self.name, num_features=num_features)
        if not eps > 0:
            raise ValueError(f"attention {self.name!r}: eps must be positive, got {eps!r}")
        self.num_heads, self.eps = num_heads, eps
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.register_buffer("features", orthogonal_features(num_features, width))
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.normal_(layer.weight, std=dim**-0.5)

    @torch.no_grad()
    def redraw_features(self) -> None:
        """Draws new features in place of the old, from torch's random numbers on their device."""
        num_features, width = self.features.shape
        self.features.copy_(orthogonal_features(num_features, width, device=self.features.device))

    def attend(self, x: Tensor, _grid: tuple[int, ...] | None, mask: Tensor | None, /) -> Tensor:
        return self._attend(x, x, mask)

    def cross_attend(
        self, x: Tensor, _grid: tuple[int, ...] | None, _mask: Tensor | None, context: Context, /
    ) -> Tensor:
        return self._attend(x, context.tokens, context.mask)

    def _attend(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.query(x), self.key(tokens), self.value(tokens)
        dtype = query.dtype
        with full_precision(x):
            mixed = self._estimate(self._split(query), self._split(key), self._split(value), mask).to(dtype)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H, N, D) in at least float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _estimate(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The attention of queries (B, H, N, D) to keys and values (B, H, M, D); mask: (B, M)."""
        query_products, key_products = self._products(query), self._products(key)  # (B, H, N or M, F)
        number: Tensor | int = key.shape[2]
        if mask is not None:
            attendable = (mask | ~mask.any(dim=1, keepdim=True))[:, None, :, None]  # (B, 1, M, 1)
            key_products = key_products.masked_fill(~attendable, float("-inf"))
            value = value.masked_fill(~attendable, 0)
            number = attendable.sum(dim=2, keepdim=True).to(value.dtype)  # (B, 1, 1, 1)
        query_features = _shifted_exponential(query_products, query, dim=(-1,))
        key_features = _shifted_exponential(key_products, key, dim=(-2, -1))
        # sums_fe = sum_m (phi_mf + eps) v_me, mass_f = sum_m (phi_mf + eps)
        sums = key_features.mT @ value + self.eps * value.sum(dim=2, keepdim=True)  # (B, H, F, D)
        mass = key_features.sum(dim=2).unsqueeze(3) + self.eps * number  # (B, H, F, 1)
        y: Tensor = query_features @ sums + self.eps * sums.sum(dim=2, keepdim=True)  # (B, H, N, D)
        return y / (query_features @ mass + self.eps * mass.sum(dim=2, keepdim=True))

    def _products(self, x: Tensor) -> Tensor:
        """w^T z (B, H, N, F) for z = x D^(-1/4)."""
        features: Tensor = self.features.to(x.dtype) * x.shape[-1] ** -0.25
        return x @ features.mT


def _shifted_exponential(products: Tensor, x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """exp(w^T z - |z|^2 / 2 - the largest w^T z over `dim`) for z = x D^(-1/4).

    Without the eps the shift would cancel in the normalisation; with it the result depends on it, so it has a gradient.
    """
    half_squares = x.square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)
    shifted: Tensor = products - (half_squares + products.amax(dim=dim, keepdim=True))
    return shifted.exp()


def orthogonal_features(num_features: int, width: int, device: torch.device | None = None) -> Tensor:
    """Rows of N(0, 1) vectors that are orthogonal in blocks of `width`: (num_features, width), float32."""
    blocks = -(-num_features // width)
    normal = torch.randn(blocks, width, width, device=device, dtype=torch.float32)
    directions, triangle = torch.linalg.qr(normal)
    # The factorisation prefers some directions; with the diagonal of R made positive Q is uniformly distributed.
    directions = directions * triangle.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    lengths = torch.randn(num_features, width, device=device, dtype=torch.float32).norm(dim=1, keepdim=True)
    features: Tensor = directions.mT.reshape(-1, width)[:num_features] * lengths
    return features
