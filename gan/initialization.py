"""How both networks begin, and the spectral normalisation of their weights.

| parameter                              | start                                            |
| -------------------------------------- | ------------------------------------------------ |
| weight of a convolution, linear map,   | orthogonal, gain 1 (a 4-d weight as an           |
| embedding                              | O x (I k k) matrix)                              |
| bias                                   | 0                                                |
| batch norm's weight, bias              | 1, 0                                             |
| attention's gate                       | 0 (shared_attn.feature_map)                      |
| attention left without spectral norm   | as its variant sets it, for unit output          |

Spectral norm (`gan.spectral_norm`): W / sigma(W), one power iteration a training forward, on the weight of every layer
in the first row. An attention's other parameters (a temperature a head, a table of position biases) are no linear maps
and stay as they are.

External attention's value memory maps weights that sum to one over S slots, so its output is about sqrt(e / S) of the
size of its largest singular value: normalised, the block is some forty times weaker at the start than SAGAN's, whose
values are features. Hence attention can be left out of the normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan.spectral_norm import normalise
from shared_attn.functional import full_precision


def initialize(network: nn.Module, *, spectral_norm: bool, attention_spectral_norm: bool) -> None:
    """Set every parameter of a network to its start (the table above), then wrap its weight matrices.

    Args:
        network: a generator or discriminator, whose submodule `attention` is its attention.
        spectral_norm: normalise every weight matrix; vectors, biases and scalars stay as they are.
        attention_spectral_norm: treat the attention as all other layers; otherwise leave it as it is.
    """
    left_out = set() if attention_spectral_norm else set(network.get_submodule("attention").modules())
    modules = [module for module in network.modules() if module not in left_out]
    for module in modules:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.orthogonal_(module.weight)
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                nn.init.zeros_(bias)
    for module in modules if spectral_norm else ():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.Embedding):
            normalise(module)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the same network without spectral norm: each normalised weight by its value W / sigma.

    Removing the norm in place would not do: copies of a parametrised module share one class, and lose it together.
    """
    state = {name: value for name, value in network.state_dict().items() if "parametrizations." not in name}
    with torch.no_grad():
        for prefix, module in network.named_modules():
            for name in getattr(module, "parametrizations", ()):
                state[f"{prefix}.{name}"] = getattr(module, name).detach()
    return state


@contextmanager
def spectral_weights(network: nn.Module) -> Iterator[None]:
    """Compute each normalised weight once, in float32 whatever autocast says, and keep it while the context lasts."""
    with parametrize.cached():
        with full_precision(next(network.parameters())):
            for module in network.modules():
                if parametrize.is_parametrized(module):
                    for name in module.parametrizations:  # type: ignore[union-attr]
                        getattr(module, name)
        yield
