"""HDF5 files from strangers: a dataset is read only where it lies in the file, and is no larger than what is stored."""

from __future__ import annotations

import math
import mmap
import struct
from typing import Any

MOST_BYTES = 8 * 2**30  # of a dataset that is read as a whole
MOST_CHUNK_BYTES = 2**30  # unpacked to read anything in it
BOMB_BYTES, BOMB_RATIO = 256 * 2**20, 100  # as in archives.py
HEAP, HEAP_HEADER = b"GCOL\1\0\0\0", 16  # of the objects of any length, which lie in heaps
# What h5py raises for a damaged file.
HDF5_ERRORS = (OSError, LookupError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError, AttributeError)


def find_dataset(file: Any, key: str, *, whole: bool = True) -> Any:
    """The dataset of this name in an open h5py file; None where there is none.

    Args:
        whole: it will be read as a whole, else row by row.

    Raises:
        ValueError: it lies in another file, is computed from other datasets, or claims more than is stored; one of
            HDF5_ERRORS: the file is damaged. In one line without the path.
    """
    import h5py

    if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
        raise ValueError(f"{key} is a link to another file, which is not opened")
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{key} lies in another file, which is not opened")
    if dataset.shape is None:
        raise ValueError(f"{key} is empty")
    if h5py.check_vlen_dtype(dataset.dtype) is not None or h5py.check_string_dtype(dataset.dtype) is not None:
        _check_heaps(file.filename)
    chunk = math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    claimed, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    is_bomb = claimed > BOMB_BYTES and claimed > BOMB_RATIO * stored
    if chunk > MOST_CHUNK_BYTES or is_bomb or (whole and claimed > MOST_BYTES):
        raise ValueError(f"{key} claims to be {dataset.dtype} {dataset.shape}, but {stored:,} bytes are stored")
    return dataset


def _check_heaps(path: str) -> None:
    """Refuses a file in one of whose heaps an object has no length, or one beyond its heap: HDF5 2.0 would go through
    such a heap without end."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heap = content.find(HEAP)
        while heap >= 0:
            place = heap + HEAP_HEADER
            end = heap + int.from_bytes(content[heap + 8 : place], "little")
            if end > len(content):
                raise ValueError(f"a heap of objects at byte {heap} claims {end - heap:,} bytes")
            while place + HEAP_HEADER <= end:
                number, length = struct.unpack_from("<H6xQ", content, place)
                place += length if number == 0 else HEAP_HEADER + -(-length // 8) * 8  # number 0: what is free
                if (number == 0 and length < HEAP_HEADER) or place > end:
                    raise ValueError(f"a heap of objects at byte {heap} is damaged")
            heap = content.find(HEAP, heap + len(HEAP))
