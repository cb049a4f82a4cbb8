"""Keeps freed memory in the process, which makes training on a CPU several times faster."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to reuse large freed blocks instead of returning them to the kernel.

    Otherwise each activation of a few MB is mapped, zeroed page by page on first touch and unmapped again: measured, a
    gather of 33 MB took 46 ms instead of 1. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_TOP_PAD, 2**26)
