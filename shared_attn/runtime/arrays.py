"""Arrays from .npy and .npz files of strangers: plain numbers and text only, and never larger than the file holds."""

from __future__ import annotations

import math
import sys
import tokenize
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from shared_attn.runtime.archives import ZIP_ERRORS, open_zip
from shared_attn.runtime.messages import one_line

# What numpy raises for a damaged header.
HEADER_ERRORS = (
    *ZIP_ERRORS,
    OSError,
    SyntaxError,
    TypeError,
    AttributeError,
    MemoryError,
    tokenize.TokenError,
)


def load_arrays(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The arrays of these names that an .npz file holds.

    Raises:
        ValueError: it is no readable zip of arrays, or one of these is of Python objects (a pickle, which is never
            loaded) or of another size than its file; in one line without the path. OSError: it cannot be read.
    """
    with open_zip(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        return {name: _read_entry(archive, entries[name], name) for name in names if name in entries}


def list_arrays(path: Path) -> list[str]:
    """The names of what an .npz file holds; raises as `load_arrays`."""
    with open_zip(path) as archive:
        return [entry.filename.removesuffix(".npy") for entry in archive.infolist()]


def map_array(path: Path) -> Any:
    """The array of an .npy file, mapped from it; raises as `load_arrays`."""
    import numpy as np

    with open(path, "rb") as file:
        shape, fortran, dtype = _read_header(file)
        start = file.tell()
        _check_size(shape, dtype, path.stat().st_size - start)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Any:
    import numpy as np

    try:
        with archive.open(entry) as file:
            shape, fortran, dtype = _read_header(file)
            _check_size(shape, dtype, entry.file_size - file.tell())
            content = np.empty(entry.file_size - file.tell(), dtype=np.uint8)
            if file.readinto(content.data) != len(content):  # type: ignore[attr-defined]
                raise ValueError("is cut short")
    except HEADER_ERRORS as error:
        raise ValueError(f"{name}: {one_line(error)}") from error
    if dtype.kind == "U" and not _is_text(content.view(f"{dtype.byteorder}u4")):
        raise ValueError(f"{name}: its text has characters that do not exist")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the first index runs fastest, and data type of an .npy file, which is left at its numbers."""
    from numpy.lib import format as layout

    try:
        version = layout.read_magic(file)
        read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except HEADER_ERRORS as error:
        raise ValueError(f"not an .npy array ({one_line(error)})") from error
    if dtype.hasobject:
        raise ValueError("holds Python objects, a pickle, which is never loaded")
    if dtype.names is not None or dtype.subdtype is not None or any(count < 0 for count in shape):
        raise ValueError(f"is {dtype} {shape}, expected plain numbers or text")
    return shape, fortran, dtype


def _is_text(points: Any) -> bool:
    """Whether numbers are code points of Unicode; numpy looks at none of them."""
    return not ((points > sys.maxunicode) | ((points >= 0xD800) & (points < 0xE000))).any()


def _check_size(shape: tuple[int, ...], dtype: Any, held: int) -> None:
    if (claimed := dtype.itemsize * math.prod(shape)) != held:
        raise ValueError(f"claims to be {dtype} {shape}, {claimed:,} bytes, but {held:,} are there")
