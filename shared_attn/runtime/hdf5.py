"""HDF5 files from strangers: a dataset is read only where it lies in the file, and is no larger than what is stored.

Plain numbers are read by a library that checks what it reads. Things of any length (text, encoded images) are not: they
are references into heaps, and at a spoilt one HDF5 2.0 reads without end, makes gigabytes or ends the process. So the
references are checked here, and text in an attribute, where they cannot be, is read by another process.
"""

from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

MOST_BYTES = 8 * 2**30  # of a dataset that is read as a whole
MOST_CHUNK_BYTES = 2**30  # unpacked to read anything in it
BOMB_BYTES, BOMB_RATIO = 256 * 2**20, 100  # as in archives.py
# What h5py raises for a damaged file.
HDF5_ERRORS = (OSError, LookupError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError, AttributeError)

HEAP, HEAP_HEADER = b"GCOL\1\0\0\0", 16
DEFLATE, SHUFFLE = 1, 2  # HDF5's numbers of filters
# Of an attribute, by a process that has a second for it and 4 GB.
READ_ATTRIBUTE = """
import json, resource, sys, h5py, numpy
second = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 2
resource.setrlimit(resource.RLIMIT_CPU, (second, second))
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
with h5py.File(sys.argv[1], "r") as file:
    found = file.attrs[sys.argv[2]]
words = [word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in numpy.ravel(found)]
print(json.dumps([numpy.ndim(found), words]))
"""


def find_dataset(file: Any, key: str, *, whole: bool = True) -> Any:
    """The dataset of this name in an open h5py file; None where there is none.

    Args:
        whole: it will be read as a whole, else row by row.

    Raises:
        ValueError: it lies in another file, is computed from other datasets, claims more than is stored, or refers to
            what is not there; one of HDF5_ERRORS: the file is damaged. In one line without the path.
    """
    import h5py

    if isinstance(file.get(key, getlink=True), (h5py.ExternalLink, h5py.SoftLink)):  # a soft one may lead on to such
        raise ValueError(f"{key} is a link to another file or place, which is not opened")
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{key} lies in another file, which is not opened")
    if dataset.shape is None:
        raise ValueError(f"{key} is empty")
    chunk = math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    claimed, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    is_bomb = claimed > BOMB_BYTES and claimed > BOMB_RATIO * stored
    if chunk > MOST_CHUNK_BYTES or is_bomb or (whole and claimed > MOST_BYTES):
        held = f"{stored:,} bytes are" if stored else "nothing is"
        raise ValueError(f"{key} claims to be {dataset.dtype} {dataset.shape}, but {held} stored in it")
    if dataset.dtype.hasobject:
        _check_kind(file, key, dataset)
        for _ in _find_objects(file, key, dataset):  # all are there
            pass
    return dataset


def read_text(file: Any, key: str) -> list[str] | None:
    """The words of a list in a dataset or attribute of this name; None where there is neither.

    Raises:
        ValueError: it is no list, or cannot be read.
    """
    dataset = find_dataset(file, key)
    if dataset is not None:
        dimensions = dataset.ndim
        found = _read_objects(file, key, dataset) if dataset.dtype.hasobject else dataset[()].ravel().tolist()
    elif key in file.attrs:
        command = [sys.executable, "-c", READ_ATTRIBUTE, file.filename, key]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=True)
            dimensions, found = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise ValueError(f"{key} cannot be read") from error
    else:
        return None
    if dimensions != 1 or not found:
        raise ValueError(f"{key} has {dimensions} dimensions and {len(found)} entries, expected a list")
    return [word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in found]


def _check_kind(file: Any, key: str, dataset: Any) -> None:
    """Refuses objects other than bytes and text of any length, at addresses of 8 bytes."""
    import h5py

    kind, properties = dataset.id.get_type(), file.id.get_create_plist()
    is_text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    if not is_text and (kind.get_class() != h5py.h5t.VLEN or kind.get_super() != h5py.h5t.STD_U8LE):
        raise ValueError(f"{key} is of a kind that is not read, expected bytes or text of any length")
    if properties.get_sizes() != (8, 8) or properties.get_userblock():
        raise ValueError(f"{key} has addresses of another size than 8 bytes, or the file begins later")


def _read_objects(file: Any, key: str, dataset: Any) -> list[bytes]:
    with open(file.filename, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [content[start : start + length] for start, length in _find_objects(file, key, dataset)]
    return found[: dataset.size]  # a last chunk may be longer


def _find_objects(file: Any, key: str, dataset: Any) -> Iterator[tuple[int, int]]:
    """Where each of a dataset's objects begins in the file, and its length, found without HDF5's help.

    Raises:
        ValueError: a reference leads to no object, or to a shorter one.
    """
    import numpy as np

    reference = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
    with open(file.filename, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heaps: dict[int, dict[int, tuple[int, int]]] = {}
        for block in _read_raw(dataset, content):
            if len(block) % reference.itemsize:
                raise ValueError(f"{key} is cut short")
            for length, heap, number in np.frombuffer(block, reference).tolist():
                if heap and heap not in heaps:
                    heaps[heap] = _list_heap(content, heap)
                start, held = heaps[heap].get(number, (0, -1)) if heap else (0, 0)
                if length > held:
                    raise ValueError(f"{key} refers to {length:,} bytes that are not there")
                yield start, length


def _read_raw(dataset: Any, content: mmap.mmap) -> Any:
    """A dataset's bytes as they are stored, filters undone, in blocks."""
    import numpy as np

    if dataset.chunks is None:
        start, length = dataset.id.get_offset(), dataset.id.get_storage_size()
        if start is None or start + length > len(content):
            raise ValueError("its references do not lie in the file")
        yield content[start : start + length]
        return
    filters = [dataset.id.get_create_plist().get_filter(place)[0] for place in range(_count_filters(dataset))]
    if not set(filters) <= {DEFLATE, SHUFFLE}:
        raise ValueError("its references are packed in a way that is not read; gzip is")
    itemsize, claimed = 16, 16 * math.prod(dataset.chunks)
    for number in range(dataset.id.get_num_chunks()):
        mask, raw = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(number).chunk_offset)
        if mask:
            raise ValueError("its references are packed in several ways")
        for kind in reversed(filters):
            if kind == DEFLATE:
                raw = zlib.decompressobj().decompress(raw, claimed + 1)
            else:
                raw = np.frombuffer(raw, np.uint8).reshape(itemsize, -1).T.tobytes()
        if len(raw) != claimed:
            raise ValueError("its references are cut short")
        yield raw


def _count_filters(dataset: Any) -> int:
    return int(dataset.id.get_create_plist().get_nfilters())


def _list_heap(content: mmap.mmap, heap: int) -> dict[int, tuple[int, int]]:
    """Number -> start and length of the objects in the heap at an address."""
    objects: dict[int, tuple[int, int]] = {}
    place = heap + HEAP_HEADER
    end = heap + int.from_bytes(content[heap + 8 : place], "little")
    if content[heap : heap + len(HEAP)] != HEAP or end > len(content):
        raise ValueError(f"there is no whole heap of objects at byte {heap}")
    while place + HEAP_HEADER <= end:
        number = int.from_bytes(content[place : place + 2], "little")
        length = int.from_bytes(content[place + 8 : place + HEAP_HEADER], "little")
        if number:
            objects[number] = place + HEAP_HEADER, length
        place += HEAP_HEADER + -(-length // 8) * 8 if number else length  # number 0: what is free, its header included
        if place > end or (not number and length < HEAP_HEADER):
            raise ValueError(f"the heap of objects at byte {heap} is damaged")
    return objects
