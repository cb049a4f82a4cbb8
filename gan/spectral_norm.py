"""Spectral normalisation of a weight (arXiv 1802.05957) as a parametrisation: W / sigma, sigma by power iteration.

Legend: O outputs, I inputs times kernel positions; a weight is read as an O x I matrix.

The buffers and their names are those of torch's own parametrisation, and so are its numbers up to rounding. It is
its own here because two thirds of the work suffice: after u = W v / |W v| and v = W^T u / |W^T u|, sigma = u^T W v is
|W^T u|, which is known; and the gradient has a closed form, in which u and v are constants,

    dL/dW = (G - <G, W / sigma> u v^T) / sigma,    G = dL/d(W / sigma).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

EPS = 1e-12
FIRST_ITERATIONS = 15  # as torch's parametrisation makes at the start


class SpectralNorm(nn.Module):
    """W -> W / sigma(W); in training each call makes one power iteration first.

    Args:
        weight: the parameter that it will be given, of two dimensions or more.
    """

    _u: Tensor  # (O,) and (I,), the singular vectors so far
    _v: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        matrix = weight.detach().flatten(1)  # (O, I)
        self.register_buffer("_u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=EPS))
        self.register_buffer("_v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=EPS))
        for _ in range(FIRST_ITERATIONS):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            matrix = weight.flatten(1)
            sigma = self._iterate(matrix) if self.training else torch.dot(self._u, torch.mv(matrix, self._v))
        # Copies: the next forward's iteration changes the buffers, and this one's backward may come after it.
        y: Tensor = _Divide.apply(weight, self._u.clone(), self._v.clone(), sigma)
        return y

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> Tensor:
        """One step of the power iteration, in place: sigma for the new vectors."""
        u = torch.mv(matrix, self._v)
        self._u.copy_(u.div_(torch.linalg.vector_norm(u).clamp_min_(EPS)))
        v = torch.mv(matrix.t(), self._u)
        sigma = torch.linalg.vector_norm(v)
        self._v.copy_(v.div_(sigma.clamp_min(EPS)))
        return sigma


class _Divide(torch.autograd.Function):
    """weight / sigma, where sigma = u^T W v depends on the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(weight, u, v, sigma)
        return weight / sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, u, v, sigma = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the saved sigma carries no graph, so make it again with one
            sigma = torch.dot(u, torch.mv(weight.flatten(1), v))
            grad = grad / sigma
            return grad - (grad * weight).sum() / sigma * torch.outer(u, v).view_as(weight), None, None, None
        grad = (grad / sigma).contiguous().flatten(1)  # (O, I)
        inner = torch.dot(grad.flatten(), weight.flatten()) / sigma
        return grad.addr_(u * -inner, v).view_as(weight), None, None, None


def normalise(module: nn.Module) -> None:
    """Make a layer's weight its value over its spectral norm; the parameter becomes parametrizations.weight.original.

    An initialisation that comes after it is ignored, so it is applied last.
    """
    weight = module.get_parameter("weight")
    parametrize.register_parametrization(module, "weight", SpectralNorm(weight))
