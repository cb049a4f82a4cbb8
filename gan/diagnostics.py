"""Signs that a training goes wrong: collapse, a discriminator that has won, weights that grow.

Legend: D feature size, O output size, I input size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan.initialization import plain_state

SURE = 0.99  # share of images judged rightly from which on a discriminator teaches nothing any more
PATIENCE = 10  # log lines in a row that it takes
LEAST_VARIETY = 0.2  # of the directions that real images' features span; samples below it have collapsed


class SaturationWatch:
    """Tells once when the discriminator has told nearly every image apart for PATIENCE log lines in a row."""

    def __init__(self) -> None:
        self.sure_lines = 0

    def update(self, accuracy: float, step: int) -> str | None:
        """Take in the share of images judged rightly since the last line; what to tell, or None."""
        self.sure_lines = self.sure_lines + 1 if accuracy >= SURE else 0
        if self.sure_lines != PATIENCE:
            return None
        return (
            f"the discriminator judges {accuracy:.1%} of all images rightly at step {step}, and has for {PATIENCE} "
            "lines: the generator learns little from it; try --augment, --r1-gamma or a lower --discriminator-lr"
        )


def collapse_warning(variety: float, step: int) -> str | None:
    """What to tell of samples whose features span far fewer directions than those of real images, or None.

    Args:
        variety: effective rank of the samples' features over that of as many real images'.
    """
    if variety >= LEAST_VARIETY:
        return None
    return (
        f"the samples have lost their variety at step {step}: their features span {variety:.0%} of the directions that "
        "real images' do; try --augment, a gradient penalty, or the checkpoint before"
    )


@torch.no_grad()
def spectra(network: nn.Module) -> dict[str, float]:
    """The largest singular value of every weight matrix as the forward uses it, by parameter name.

    A convolution's weight counts as its O x (I k k) matrix, as spectral normalisation takes it: with it on, values stay
    close to 1, and one that does not shows a power iteration that lags behind.
    """
    training = network.training
    state = plain_state(network.eval())  # in eval mode, so that no power iteration is made
    network.train(training)
    matrices = {name: value.flatten(1) for name, value in state.items() if name.endswith("weight") and value.ndim > 1}
    return {name: float(_largest(matrix)) for name, matrix in matrices.items()}


def _largest(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.double(), ord=2)
