"""A lock on an open file that vanishes with its process, however that ends.

A record lock of fcntl, and no library's: those (filelock among them) use flock, which every forked process inherits, so
that workers that decode images would hold a killed training's lock for the seconds until they notice.
"""

from __future__ import annotations

import errno
import time

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EACCES, errno.EAGAIN)  # by another process
PAUSE = 0.2  # seconds between two attempts


def lock_file(handle: int, patience: float = 0.0) -> str | None:
    """Lock an open file, which nobody but this process then locks until it closes it; it may lock it again itself.

    Args:
        handle: its descriptor, open for writing.
        patience: seconds in which another process may let go of it.

    Returns:
        None, or why there are no locks here: some network file systems have none, nor have some systems.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return "this system has no record locks"
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError as error:
            if error.errno not in HELD:
                return error.strerror or str(error)
            if time.monotonic() >= until:
                raise BlockingIOError(error.errno, error.strerror) from error
        time.sleep(PAUSE)
