"""torch.compile for training: a network's forward and backward, one graph each a step."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

COMPILERS = ("g++", "clang++", "c++")


def compile_network(network: nn.Module, device: torch.device, *, cuda_graphs: bool = True) -> None:
    """Makes calls of the network go through torch.compile as one graph, a CUDA graph where the device is one.

    Its state_dict and its copies are what they were. Operators of this project (farthest points, neighbours, the
    kernels of attentions) stay operators in that graph.

    Args:
        cuda_graphs: Replay what was compiled as a CUDA graph; not where the whole step is captured anyway.

    Raises:
        ValueError: on a CPU without the C++ compiler that torch.compile calls.
    """
    if device.type == "cpu" and not os.environ.get("CXX") and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"--compile: needs a C++ compiler, found none of {', '.join(COMPILERS)}, and CXX is not set")
    mode = "reduce-overhead" if device.type == "cuda" and cuda_graphs else None
    network.compile(fullgraph=True, dynamic=False, mode=mode)
