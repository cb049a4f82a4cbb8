"""A training step as one CUDA graph: thousands of kernels, launched at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EAGER_STEPS = 3  # before the capture: libraries choose their algorithms, optimizers make their state


class GraphedStep:
    """A function of tensors on a CUDA device that is captured as a graph after a few calls, and replayed from then on.

    Every call has the function's whole effect, the eager ones and the one that captures too. What it draws at random
    follows torch's seed at the time of the call, captured or not.

    Args:
        step: no synchronisation with the host, no choice by a tensor's value, the same shapes at every call. It may
            update weights, buffers and optimizers (made with `capturable=True`) in place.
    """

    def __init__(self, step: Callable[..., Tensor]):
        self.step = step
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.output = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= EAGER_STEPS:
            return self._on_side_stream(*inputs)
        if self.graph is None:
            self._capture(*inputs)
        assert self.graph is not None
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output.clone()

    def _on_side_stream(self, *inputs: Tensor) -> Tensor:
        """The step itself, on another stream, as a capture requires of the calls before it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _capture(self, *inputs: Tensor) -> None:
        """Record the step on copies of its inputs; recording runs nothing."""
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.step(*self.inputs)
