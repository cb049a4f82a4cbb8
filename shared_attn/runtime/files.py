"""Files that are either the old ones or the new ones, never half-written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` and renames it over ``path`` when the block ends well.

    On an error (a full disk, an interrupt) the temporary file is removed and ``path`` is as it was.

    Raises:
        OSError: The folder cannot be written; in one line that names the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = open(temporary, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise type(error)(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
