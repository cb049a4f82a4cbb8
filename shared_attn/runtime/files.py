"""Files that are either the old ones or the new ones, never half-written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # with the process's number


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` and renames it over ``path`` when the block ends well.

    On an error (a full disk, an interrupt) the temporary file is removed and ``path`` is as it was.

    Raises:
        OSError: The folder cannot be written, or its disk is full; in one line that names the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = open(temporary, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115, closed below
    try:
        with naming(path, unnamed_only=True), opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with naming(path):
            os.replace(temporary, path)
        _keep_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what is told
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path | str, *, unnamed_only: bool = False) -> Iterator[None]:
    """Turns the system's errors within the block to ones that name ``path``: "runs/a/x: cannot be written (...)".

    Args:
        unnamed_only: only those that name no file, as a write's; another file's are that file's.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (unnamed_only and error.filename is not None):
            raise
        raise type(error)(f"{path}: cannot be written ({error.strerror})") from error


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files in ``folder`` and its folders whose processes were killed while they wrote them."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        found = TEMPORARY.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _lives(int(found[1]))):
            path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def _keep_names(folder: Path) -> None:
    """Lets a rename outlive a power cut; where folders cannot be synchronised it is as safe as the file system."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
