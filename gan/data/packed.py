"""A source whose images lie in large blocks, rewritten into one file of the cache folder from which each is read alone.

Parquet decompresses a whole row group for one image, and HDF5 a whole chunk: read in a random order, that would be
done a hundred times over. The images stay encoded as they are, so the file is about as large as the source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gan.data.decoding import DAMAGE, give_reason, is_damage
from gan.data.source import Content, ImageSource, cache_folder, digest
from shared_attn.runtime.files import atomic_write

BLOCK = 256


class PackedImages(ImageSource):
    """The images of `source`, from the file that `pack` has made of it."""

    def __init__(self, source: ImageSource, content: Path, ends: np.ndarray, shape: tuple[int, ...] | None):
        """`ends`: where in the file each item ends; `shape`: of an item, where the items are pixels."""
        self.path, self.name, self.labels = source.path, source.name, source.labels
        self.class_names, self.identity = source.class_names, source.identity
        self.describe_item: Callable[[int], str] = source.describe
        self._content, self._ends, self._shape = content, ends, shape

    def read(self, item: int) -> Content:
        start = int(self._ends[item - 1]) if item else 0
        count = int(self._ends[item]) - start
        if not count:
            raise ValueError("no readable content")
        with open(self._content, "rb") as file:
            file.seek(start)
            content = file.read(count)
        if len(content) != count:
            raise FileNotFoundError(str(self._content))
        return content if self._shape is None else np.frombuffer(content, dtype=np.uint8).reshape(self._shape)

    def describe(self, item: int) -> str:
        return self.describe_item(item)


def pack(source: ImageSource) -> PackedImages:
    """Rewrite a source into the cache folder, unless that has been done.

    Raises:
        OSError: where the cache folder has no room; ValueError: where the source is damaged as a whole.
    """
    folder = cache_folder() / "packed"
    key = digest(source.identity)[:32]
    content, index = folder / f"{key}.bin", folder / f"{key}.npz"
    if index.is_file() and content.is_file():
        with np.load(index, allow_pickle=False) as stored:
            ends, shape = stored["ends"], tuple(stored["shape"].tolist())
        if len(ends) == len(source.labels) and content.stat().st_size == ends[-1]:
            return PackedImages(source, content, ends, shape or None)
    try:
        with atomic_write(content) as file:
            ends, shape = _write(source, file.write)
        with atomic_write(index) as file:
            np.savez(file, ends=ends, shape=np.array(shape, dtype=np.int64))
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{content}: cannot be written ({error.strerror}); EAGAN_EAT_CACHE names another folder") from (
            error
        )
    return PackedImages(source, content, ends, shape or None)


def _write(source: ImageSource, write: Callable[[bytes], object]) -> tuple[np.ndarray, tuple[int, ...]]:
    from tqdm import tqdm

    total, shape, position = len(source.labels), (), 0
    ends = np.empty(total, dtype=np.int64)
    bar = tqdm(range(0, total, BLOCK), desc=f"unpacking {source.name}", delay=3, leave=False, disable=None)
    for start in bar:
        stop = min(start + BLOCK, total)
        read = source.read_block(start, stop)
        for item in range(start, stop):
            try:
                found = read(item)
            except DAMAGE as error:
                if not is_damage(error):
                    raise OSError(f"--data {source.path}: cannot be read ({give_reason(error)})") from error
                found = b""  # which reads as damaged
            if isinstance(found, np.ndarray):
                shape, found = found.shape, found.tobytes()
            write(found)
            position += len(found)
            ends[item] = position
    return ends, shape
