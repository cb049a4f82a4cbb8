"""A training that runs out of memory says so in one line, with the flag that helps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# What torch raises as a plain RuntimeError: its allocator on a CPU, and CUDA's libraries.
WORDS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def tell_shortage(train: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A training (its first argument a configuration with a ``batch_size``) that turns a lack of memory to an OSError.

    The line names --batch-size. Whatever was saved before stands: a step that fails writes nothing.
    """

    @functools.wraps(train)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return train(*arguments, **keywords)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
            detail = f" ({asked[1]} more were asked for)" if asked else ""
            size = getattr(arguments[0] if arguments else keywords["config"], "batch_size", "")
            raise OSError(
                f"--batch-size {size}: memory is too short{detail}; lower it, with another --out or "
                "--fresh, as a run keeps its batch size; what was saved stands"
            ) from error

    return call


def is_shortage(error: BaseException) -> bool:
    """Whether an error is a lack of the host's or a device's memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
