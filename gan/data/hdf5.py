"""Images in an HDF5 file: `images` (or `imgs`, as PyTorch-StudioGAN writes) and `labels`.

Legend: N images, H W pixels.

Images are pixels, uint8 (N, H, W, 3) or (N, 3, H, W), or encoded files, (N,) of uint8 of any length. Labels are
integers (N,) or (N, 1). Names of the classes may stand in a dataset or attribute `class_names`; else they are numbers.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from gan.data.decoding import MAX_PIXELS
from gan.data.source import Content, ImageSource, Reader, check_labels, digest
from shared_attn.runtime.extras import importing
from shared_attn.runtime.hdf5 import HDF5_ERRORS, MOST_CHUNK_BYTES, find_dataset, read_text
from shared_attn.runtime.messages import one_line

SUFFIXES = {".h5", ".hdf5", ".hdf"}
IMAGE_KEYS = ("images", "imgs")
LABEL_KEYS = ("labels", "label")
NAMES_KEY = "class_names"
SMALL_CHUNK = 8  # images; larger chunks are not read for the sake of one
EXPECTED = (
    "expected images (or imgs): uint8 (N, H, W, 3), (N, 3, H, W) or (N,) encoded files; and labels: integers (N,)"
)


class Hdf5Images(ImageSource):
    """The images of one file.

    Raises:
        ValueError: in one line, for a file that is not HDF5, lacks a dataset, or whose shapes or labels lie.
    """

    def __init__(self, path: Path):
        with importing(f"--data {path}"):
            import h5py

        self.path, self.name = path, path.name
        self._opened: Any = None
        self._process, self._lock = os.getpid(), threading.Lock()
        where = f"--data {path}"
        try:
            with h5py.File(path, "r") as file:
                self._image_key, images = _find(where, file, IMAGE_KEYS, whole=False)
                label_key, stored = _find(where, file, LABEL_KEYS)
                self._channels_first = _check_images(where, self._image_key, images)
                self._encoded = images.ndim == 1
                self.random_access = images.chunks is None or images.chunks[0] <= SMALL_CHUNK or self._encoded
                if stored.dtype.kind not in "iu" or stored.shape not in ((len(images),), (len(images), 1)):
                    raise ValueError(
                        f"{where}: {label_key} is {stored.dtype} {stored.shape}, expected integers ({len(images)},)"
                    )
                self.labels = np.asarray(stored[()]).reshape(-1).astype(np.int64)
                names = read_text(file, NAMES_KEY)
        except HDF5_ERRORS as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise type(error)(f"{where}: cannot be read ({error.strerror})") from error
            if str(error).startswith(where):  # said here
                raise
            raise ValueError(f"{where}: not a readable HDF5 file ({one_line(error)})") from error
        self.class_names = check_labels(where, self.labels, names)
        status = path.stat()
        self.identity = digest(path.name, status.st_size, status.st_mtime_ns, len(self.labels), self.class_names)

    def read(self, item: int) -> Content:
        with self._lock:
            return self._convert(self._images()[item])

    def read_block(self, start: int, stop: int) -> Reader:
        with self._lock:
            images = self._images()
            if (stop - start) * math.prod(images.shape[1:]) > MOST_CHUNK_BYTES:
                return self.read
            block = images[start:stop]
        return lambda item: self._convert(block[item - start])

    def describe(self, item: int) -> str:
        return f"{self._image_key}[{item}]"

    def _convert(self, found: Any) -> Content:
        if self._encoded:
            return np.asarray(found, dtype=np.uint8).tobytes()
        return found.transpose(1, 2, 0) if self._channels_first else found

    def _images(self) -> Any:
        """The dataset, opened once a process: a fork would share the file's position."""
        import h5py

        if self._opened is None or self._process != os.getpid():
            self._opened, self._process = h5py.File(self.path, "r"), os.getpid()
        return self._opened[self._image_key]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)


def _find(where: str, file: Any, keys: tuple[str, ...], *, whole: bool = True) -> tuple[str, Any]:
    for key in keys:
        if (found := find_dataset(file, key, whole=whole)) is not None:
            return key, found
    raise ValueError(f"{where}: holds {' '.join(', '.join(file).split()) or 'nothing'}; {EXPECTED}")


def _check_images(where: str, key: str, images: Any) -> bool:
    """Refuses what are no images; returns whether channels come before pixels."""
    import h5py

    shape, described = images.shape, f"{where}: {key} is {images.dtype} {images.shape}"
    if len(shape) == 1:
        if h5py.check_vlen_dtype(images.dtype) != np.uint8:
            raise ValueError(f"{described}; {EXPECTED}")
        return False
    if images.dtype != np.uint8 or len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape[1:]:
        raise ValueError(f"{described}; {EXPECTED}")
    if math.prod(shape[1:]) > 3 * MAX_PIXELS:
        raise ValueError(f"{described}; images of at most {MAX_PIXELS} pixels are read")
    if shape[0] and images.id.get_storage_size() == 0:
        raise ValueError(f"{described}, but nothing is stored in it")
    return bool(shape[3] != 3)
