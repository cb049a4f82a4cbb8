"""torch.compile for the training of a GAN: each network's forward and backward, one graph each."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

COMPILERS = ("g++", "clang++", "c++")


def compile_networks(generator: nn.Module, discriminator: nn.Module, device: torch.device) -> None:
    """Makes calls of both networks go through torch.compile, as one graph each.

    Their state_dicts and copies are what they were. On a GPU the graphs are not CUDA graphs: a generator step's
    backward runs through both networks after several forwards, whose buffers such graphs would share.

    Raises:
        ValueError: on a CPU without the C++ compiler that torch.compile calls.
    """
    if device.type == "cpu" and not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"--compile: needs a C++ compiler, found none of {', '.join(COMPILERS)}, and CXX is not set")
    for network in (generator, discriminator):
        network.compile(fullgraph=True, dynamic=False)
