"""Made once, kept on disk: tensors in a cache folder, which may be missing, full, read-only or spoilt."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def cache_folder() -> Path:
    """$EAGAN_EAT_CACHE, else eagan-eat/shapes in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("EAGAN_EAT_CACHE"):
        return Path(chosen)
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if base.startswith("~"):  # a user without a home
        base = tempfile.gettempdir()
    return Path(base) / "eagan-eat" / "shapes"


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors called `name`: read from the cache folder, or made and, where possible, written there.

    A file that cannot be read whole is made anew; the file appears under its name only when it is complete.
    """
    path = cache_folder() / f"{name}.pt"
    with contextlib.suppress(Exception):  # missing, truncated, spoilt or not ours: torch raises many types
        tensors = torch.load(path, weights_only=True)
        if isinstance(tensors, dict) and tensors.pop("complete", None) == name:
            return tensors
    tensors = make()
    with contextlib.suppress(OSError, RuntimeError):  # torch reports a full disk as RuntimeError
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({**tensors, "complete": name}, file)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return tensors
