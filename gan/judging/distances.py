"""Distances between two sets of features: pure functions of tensors, in float64.

Legend: N real samples, M generated samples, D feature size.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRDC_NEIGHBOURS = 5
PRDC_BLOCK = 1024  # rows of a distance matrix that are held at once
NOISE = 10 * torch.finfo(torch.float64).eps  # relative to the largest, an eigenvalue below this is none


def _matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.where(values > NOISE * values[-1], values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Fréchet distance of two normal distributions (arXiv 1706.08500, eq. 6): D-vectors and D x D matrices.

    Tr sqrt(C1 C2) is the sum of the singular values of C1^(1/2) C2^(1/2): no matrix root of a product is needed.
    Singular covariances (fewer samples than features) are no special case: rounding errors enter singular values as
    they are, where roots of eigenvalues of the product would raise them to 1e-8 for each missing dimension.
    """
    mean1, mean2, covariance1, covariance2 = (t.double() for t in (mean1, mean2, covariance1, covariance2))
    overlap = torch.linalg.svdvals(_matrix_root(covariance1) @ _matrix_root(covariance2)).sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * overlap
    return float(distance)


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (N, D), (M, D), kernel (x . y / D + 1)^3 (arXiv 1801.01401)."""
    real, fake = real.double(), fake.double()
    N, D = real.shape
    M = len(fake)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / D + 1) ** 3

    within_real, within_fake = kernel(real, real), kernel(fake, fake)
    real_term = (within_real.sum() - within_real.trace()) / (N * (N - 1))
    fake_term = (within_fake.sum() - within_fake.trace()) / (M * (M - 1))
    return float(real_term + fake_term - 2 * kernel(real, fake).mean())


def block_kernel_distance(real: Tensor, fake: Tensor, size: int = 1000) -> float:
    """Mean of `kernel_distance` over consecutive blocks of `size` samples; one smaller block where there are fewer."""
    size = min(size, len(real), len(fake))
    pairs = zip(real.split(size), fake.split(size), strict=False)
    values = [kernel_distance(a, b) for a, b in pairs if len(a) == len(b) == size]
    return sum(values) / len(values)


def effective_rank(features: Tensor) -> float:
    """How many directions features (N, D) span: exp of the entropy of their covariance's spectrum.

    The effective rank of Roy and Vetterli (EUSIPCO 2007), of variances. It is at most N - 1: compare equal numbers.
    """
    centred = features.double() - features.double().mean(dim=0)
    variances = torch.linalg.svdvals(centred).square()
    shares = variances / variances.sum()
    return float(torch.special.entr(shares).sum().exp())


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each sample to its k-th nearest other one: (N,)."""
    blocks = [torch.cdist(block, features).kthvalue(k + 1, dim=1).values for block in features.split(PRDC_BLOCK)]
    return torch.cat(blocks)


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = PRDC_NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of (N, D), (M, D) features.

    A sample's ball reaches to its k-th nearest neighbour in its own set. Precision: fakes in some real ball; recall:
    reals in some fake ball; density: real balls around a fake, divided by k; coverage: reals with a fake in their ball.
    """
    real, fake = real.double(), fake.double()
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    in_real = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)  # real balls around each fake
    recalled = covered = 0.0
    for block, radii in zip(real.split(PRDC_BLOCK), real_radii.split(PRDC_BLOCK), strict=True):
        distance = torch.cdist(block, fake)  # (block, M)
        in_real += (distance < radii[:, None]).sum(dim=0)
        recalled += float((distance < fake_radii).any(dim=1).sum())
        covered += float((distance.amin(dim=1) < radii).sum())
    return {
        "precision": float((in_real > 0).double().mean()),
        "recall": recalled / len(real),
        "density": float(in_real.mean()) / k,
        "coverage": covered / len(real),
    }
