"""Peak memory of a computation: what the allocator says on a GPU, what the tensors add up to elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["measure_peak_bytes"]


def measure_peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made during a call of the function held at one time.

    On a GPU the allocator's figure, scratch space of kernels included. Elsewhere every operator's new storages are
    summed while they live, so the figure is exact and repeatable, holds for meta tensors too, and leaves out what a
    single operator allocates and frees inside.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        peak: int = torch.cuda.max_memory_allocated(device) - before
        return peak
    counter = _LiveStorages()
    with counter:
        function()
    return counter.peak


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the class untyped
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self.known.pop(key, 0)
