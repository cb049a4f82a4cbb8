"""A training that repeats itself to the bit on one machine: operators with an order of their own are refused.

Without it a training on a CPU repeats itself already; on a GPU sums that many threads add to in any order do not, nor
does an algorithm that was chosen by timing. Bits still depend on the machine, the number of threads and of processes,
and the versions of libraries.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS promises the same bits in every run
WORDS = re.compile(r"(\S+) does not have a deterministic implementation")


def repeat_bits(train: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A training (its first argument a configuration) that runs under :func:`deterministic` if `deterministic` is set.

    Must begin before the process has used CUDA: cuBLAS reads its setting once.
    """

    @functools.wraps(train)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        if not getattr(arguments[0] if arguments else keywords["config"], "deterministic", False):
            return train(*arguments, **keywords)
        with deterministic():
            return train(*arguments, **keywords)

    return call


@contextmanager
def deterministic() -> Iterator[None]:
    """Lets torch choose deterministic algorithms alone, and puts everything back afterwards.

    Raises:
        ValueError: an operator has no deterministic implementation on this device (the line names it), or cuBLAS is
            set to a workspace with which it promises nothing.
    """
    workspace = os.environ.get(WORKSPACE)
    if workspace is not None and workspace not in WORKSPACES:
        raise ValueError(f"--deterministic: {WORKSPACE} is {workspace!r}; expected {' or '.join(WORKSPACES)}, or unset")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    os.environ[WORKSPACE] = workspace or WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        found = WORDS.search(str(error))
        if found is None:
            raise
        raise ValueError(
            f"--deterministic: {found[1]} has no deterministic implementation on this device; leave out what needs it, "
            "or the flag"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            del os.environ[WORKSPACE]
