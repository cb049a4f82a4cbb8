"""torch.compile for the training of a point network: its forward and backward, one graph each a step."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

COMPILERS = ("g++", "clang++", "c++")


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Makes calls of the network go through torch.compile as one graph, a CUDA graph where the device is one.

    Its state_dict and its copies are what they were. Farthest points, neighbours and, on a CPU, the work on pairs are
    operators in that graph.

    Raises:
        ValueError: on a CPU without the C++ compiler that torch.compile calls.
    """
    if device.type == "cpu" and not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"--compile: needs a C++ compiler, found none of {', '.join(COMPILERS)}, and CXX is not set")
    network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
