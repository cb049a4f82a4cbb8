"""A training by several processes, which torchrun starts: what each draws, and what they tell one another.

Everything here costs nothing in a single process. Random numbers are drawn for the batch of all processes by each of
them, with one seed; each keeps the rows of its own images. So what an image is given does not depend on their number.

A user's mistake is met by all processes alike, and one that is met by a single process ends all of them: the first
process tells it at once (the scripts' command line lets the others wait), and :func:`outlive_the_others` keeps those
quiet that only notice that another one has gone.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

GRACE = 15.0  # seconds in which torchrun ends the other processes of one that has failed

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def count_processes() -> int:
    """The processes of this training; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return count_processes() == 1 or dist.get_rank() == 0


@dataclass(frozen=True)
class Share:
    """The rows of a batch that are this process's: the ``rank``-th of ``count`` equal parts of each of its ``groups``.

    A group is a run of rows that are shared by themselves: a batch of real and generated images has two.
    """

    rank: int = 0
    count: int = 1
    groups: int = 1

    def draw(self, function: Callable[..., Tensor], rows: int, *shape: int, **options: Any) -> Tensor:
        """The ``rows`` of this process, out of what ``function`` (torch.rand, ...) draws for the rows of all.

        Args:
            function: called with the whole shape, the rows first, and with ``options``.
            rows: of this process.
            shape: of a row.
        """
        return self.take(function((rows * self.count, *shape), **options))

    def take(self, rows: Tensor) -> Tensor:
        """The rows of this process, out of those of all."""
        if self.count == 1:
            return rows
        return rows.view(self.groups, self.count, -1, *rows.shape[1:])[:, self.rank].flatten(0, 1)


WHOLE = Share()
"""Of a batch that one process has to itself."""


def gather_rows(rows: Tensor, share: Share) -> Tensor:
    """The whole of a tensor of which each process has filled in its rows, zeros elsewhere; the same in every one."""
    if share.count > 1:
        dist.all_reduce(rows)
    return rows


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each has the sum, so a gradient is the sum of what all of them found by it."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable as often as one likes."""
    total: Tensor = _Sum.apply(x)
    return total


@torch.no_grad()
def average_over_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Means over all processes of tensors of one shape, by one exchange; the tensors themselves in a single process."""
    if count_processes() == 1:
        return tensors
    means = torch.stack(tensors)
    dist.all_reduce(means)
    return (means / count_processes()).unbind()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so. In several processes it waits for the device."""
    if count_processes() == 1:
        return flag
    said = torch.tensor(int(flag), device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


def first_over_processes(failed: Tensor) -> int:
    """The first of all processes' failed steps, 0 where none has failed; waits for the device."""
    if count_processes() > 1:
        failed = torch.where(failed == 0, torch.iinfo(failed.dtype).max, failed)
        dist.all_reduce(failed, dist.ReduceOp.MIN)
        failed = torch.where(failed == torch.iinfo(failed.dtype).max, 0, failed)
    return int(failed)


@contextlib.contextmanager
def first_on_machine(local_rank: int) -> Iterator[None]:
    """A machine's first process goes through the block before the others, which find the files that it leaves."""
    if local_rank > 0:
        wait_for_all()
    yield
    if local_rank == 0:
        wait_for_all()


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if count_processes() > 1:
        dist.barrier()


def outlive_the_others(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that, where an exchange fails because another process has ended, lets that one tell why.

    torchrun then ends this one. An OSError in one line is raised where nothing ends it.
    """

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except RuntimeError as error:
            if count_processes() == 1 or not _lost_another(error):
                raise
            time.sleep(GRACE)
            raise OSError("another process of this training has ended; run the same command again to resume") from error

    return call


def _lost_another(error: RuntimeError) -> bool:
    """Whether an exchange between processes failed; gloo raises plain errors."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


class Bystander:
    """Stands in a process beside the first for what the first alone does: whatever is called does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_arguments, **_keywords: None

    def __enter__(self) -> Bystander:
        return self

    def __exit__(self, *_error: object) -> None: ...
