"""Images decoded when they are asked for, by this process or ahead of time by worker processes.

Legend: B items asked for, N images of the source, S image size.

A damaged image is replaced by the next readable one in the source's order, so what an item shows follows from the
source alone, and it is reported once. Workers change when an image is decoded, never which.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.data.decoding import check_damage
from gan.data.source import ImageSource

AHEAD = 4  # batches, at least
MOST_WORKERS = 16


@dataclass(frozen=True)
class Fetched:
    """pixels: (B, S, S, 3) uint8. items: (B,) int64, those that are shown: where they differ from those asked for,
    the latter are damaged. damaged: items and what is wrong with them. failure: what ends the job instead."""

    pixels: Any
    items: Any
    damaged: dict[int, str]
    failure: Exception | None = None

    def pin_memory(self) -> Fetched:
        """In page-locked memory, from which a copy to an accelerator does not wait. Called by torch's DataLoader."""
        pixels, items = (torch.from_numpy(part).pin_memory() for part in (self.pixels, self.items))
        return replace(self, pixels=pixels, items=items)


class StreamedImages:
    """(N, S, S, 3) uint8 that is decoded on indexing.

    Attributes:
        shape, nbytes: as a tensor's would be.
        skipped: a line for each damaged image met so far.
        report: what is called with each such line.
    """

    def __init__(self, source: ImageSource, size: int):
        self.source, self.size = source, size
        self.shape = (len(source.labels), size, size, 3)
        self.nbytes = len(source.labels) * size * size * 3
        self.skipped: list[str] = []
        self.report: Callable[[str], None] = print_line
        self._damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, items: Tensor | Sequence[int]) -> Tensor:
        """(B, S, S, 3) uint8 of items (B,), decoded on all cores of this process."""
        chosen = items.tolist() if isinstance(items, Tensor) else list(items)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = list(pool.map(lambda item: fetch(self.source, self.size, [item]), chosen))
        self.accept(*parts)
        if not parts:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return torch.from_numpy(np.concatenate([part.pixels for part in parts]))

    def accept(self, *parts: Fetched) -> None:
        """Report what is newly known to be damaged.

        Raises:
            ValueError: where that is too much. OSError: a failure.
        """
        for part in parts:
            for item, reason in part.damaged.items():
                if item not in self._damaged:
                    self._damaged[item] = reason
                    self.skipped.append(f"{self.source.describe(item)}: {reason}")
                    self.report(f"skipped an image that cannot be read, the next one stands for it: {self.skipped[-1]}")
            if part.failure is not None:
                raise part.failure
        if self._damaged:
            check_damage(self.source.path, self.skipped, len(self))


def print_line(line: str) -> None:
    """To standard error, above progress bars."""
    import sys

    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def fetch(source: ImageSource, size: int, items: Sequence[int]) -> Fetched:
    """Decode items one after another; raises nothing that a source is known to raise."""
    total = len(source.labels)
    pixels = np.empty((len(items), size, size, 3), dtype=np.uint8)
    shown, damaged = np.array(items, dtype=np.int64), {}
    try:
        for row in range(len(items)):
            while isinstance(found := source.decode(shown[row], size), str):
                damaged[int(shown[row])] = found
                check_damage(source.path, [f"{source.describe(i)}: {text}" for i, text in damaged.items()], total)
                shown[row] = (shown[row] + 1) % total
            pixels[row] = found
    except (OSError, ValueError) as error:
        return Fetched(pixels, shown, damaged, error)
    except MemoryError:
        failure = OSError(f"--data {source.path}: memory is too short to decode its images; try fewer --workers")
        return Fetched(pixels, shown, damaged, failure)
    return Fetched(pixels, shown, damaged)


class _FetchedBatches(torch.utils.data.Dataset):
    """What a worker computes: a batch for a list of items."""

    def __init__(self, source: ImageSource, size: int):
        self.source, self.size = source, size

    def __getitem__(self, items: Any) -> Fetched:
        return fetch(self.source, self.size, items)

    def __len__(self) -> int:
        return len(self.source.labels)


class _BatchesOnwards:
    """The items of batch after batch, without end."""

    def __init__(self, take: Callable[[int, int], Tensor], shown: int, count: int):
        self.take, self.shown, self.count = take, shown, count

    def __iter__(self) -> Iterator[list[int]]:
        shown = self.shown
        while True:
            yield self.take(shown, self.count).tolist()
            shown += self.count


class Prefetcher:
    """Batches decoded ahead by worker processes, for as long as each follows the one before it.

    Args:
        take: (shown, count) -> the items (B,) of the batch of `count` after `shown`.
        workers: processes; 0: none, a batch is decoded when it is asked for.
        pin: put batches into page-locked memory.
    """

    def __init__(self, images: StreamedImages, take: Callable[[int, int], Tensor], *, workers: int, pin: bool):
        self.images, self.take, self.workers, self.pin = images, take, workers, pin
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[Fetched] | None = None

    def get(self, shown: int, count: int) -> Fetched:
        """The batch of `count` after `shown`.

        Raises:
            ValueError, OSError: in one line, as StreamedImages.accept, and where a worker dies.
        """
        if self._batches is None or self._next != (shown, count):
            self.close()
            self._batches = self._start(shown, count)
        try:
            fetched = next(self._batches)
        except RuntimeError as error:
            self.close()
            if "worker" not in str(error):  # torch says "DataLoader worker (pid 5) exited unexpectedly"
                raise
            raise OSError(
                f"--data {self.images.source.path}: a worker process died (memory may be short); "
                "fewer --workers need less, --workers 0 does without them"
            ) from error
        self._next = (shown + count, count)
        self.images.accept(fetched)
        return fetched

    def _start(self, shown: int, count: int) -> Iterator[Fetched]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about more workers than cores, which were asked for
            loader = torch.utils.data.DataLoader(
                _FetchedBatches(self.images.source, self.images.size),
                batch_size=None,
                sampler=_BatchesOnwards(self.take, shown, count),
                collate_fn=keep,
                num_workers=self.workers,
                prefetch_factor=max(2, -(-AHEAD // self.workers)) if self.workers else None,
                worker_init_fn=ignore_interrupts,
                pin_memory=self.pin,
                generator=torch.Generator(),  # else the loader draws its seed from the training's own random numbers
            )
            return iter(loader)

    def close(self) -> None:
        """Stop the workers."""
        self._batches = None


def keep(batch: Any) -> Any:
    """As it is: arrays go through a pipe, where tensors would need shared memory, of which containers have little."""
    return batch


def ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training's own decides what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def count_workers(processes: int = 1) -> int:
    """One a core that each of the training's processes may use, at most MOST_WORKERS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // processes, MOST_WORKERS))
