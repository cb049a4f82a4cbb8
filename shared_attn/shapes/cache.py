"""Made once, kept on disk: tensors in a cache folder, which may be missing, full, read-only or spoilt."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

DIGEST = 32  # bytes of a file's checksum


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

    A file holds its checksum and torch's own format. One that is missing or spoilt is made anew; it appears under its
    name only when it is complete.
    """
    path = cache_folder() / f"{name}.pt"
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            checksum, content = file.read(DIGEST), file.read()
        if checksum == _checksum(name, content):
            tensors: dict[str, Tensor] = torch.load(io.BytesIO(content), weights_only=True)
            return tensors
    made = make()
    buffer = io.BytesIO()
    torch.save(made, buffer)
    content = buffer.getvalue()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_checksum(name, content))
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return made


def _checksum(name: str, content: bytes) -> bytes:
    """Checksum of a file's content under its name."""
    return hashlib.blake2b(content, digest_size=DIGEST, key=hashlib.sha256(name.encode()).digest()).digest()
