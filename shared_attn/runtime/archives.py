"""Zips from strangers: opened only where nothing in them leads out of them or swells beyond measure.

Nothing is ever extracted: entries are read by name, and never beyond the size that the zip's directory states.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from shared_attn.runtime.messages import one_line

MOST_ENTRY_BYTES = 4 * 2**30  # of one entry, unpacked
# An entry that swells this much is no data: photographs and coordinates shrink tenfold at most, deflate a thousandfold.
BOMB_BYTES, BOMB_RATIO = 256 * 2**20, 100
# What zipfile raises for what is no zip, or a damaged or encrypted one.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
    struct.error,
)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip whose entries can be read one by one in bounded memory.

    Raises:
        ValueError: it is no readable zip, or an entry's name leads out of it, is a symbolic link, or unpacks to more
            than MOST_ENTRY_BYTES or, above BOMB_BYTES, to more than BOMB_RATIO times its size; in one line without the
            path.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise ValueError(f"not a readable zip ({one_line(error)})") from error
    try:
        for entry in archive.infolist():
            if problem := _find_problem(entry):
                raise ValueError(f"the zip's entry {_shorten(entry.filename)} {problem}, and is refused")
    except ValueError:
        archive.close()
        raise
    return archive


def leads_out(name: str | PurePosixPath) -> bool:
    """Whether a name within a folder or an archive leads out of it."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or str(name)[1:2] == ":"


def _find_problem(entry: zipfile.ZipInfo) -> str | None:
    if not PurePosixPath(entry.filename).parts:
        return "has no name"
    if leads_out(entry.filename):
        return "leads out of it"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a symbolic link"
    size, packed = entry.file_size, entry.compress_size
    if size > MOST_ENTRY_BYTES or (size > BOMB_BYTES and size > BOMB_RATIO * max(1, packed)):
        return f"unpacks from {packed:,} to {size:,} bytes"
    return None


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
