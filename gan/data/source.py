"""What every source of encoded or stored images offers: item after item, from any thread and any process.

Legend: N images, H W pixels, S image size.
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gan.data.decoding import DAMAGE, decode_image, fit_pixels, give_reason, is_damage

SPLITS = ("train", "test")
# Folders and files of a split, by the first that is there.
ROLES = {"train": ("train",), "test": ("test", "val", "valid", "validation")}

Content = bytes | np.ndarray  # an image file's bytes, or pixels (H, W, 3) uint8
Reader = Callable[[int], Content]


def cache_folder() -> Path:
    """Where decoded data and statistics are kept: $EAGAN_EAT_CACHE, else eagan-eat in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("EAGAN_EAT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "eagan-eat"


class ImageSource(abc.ABC):
    """N images in a fixed order.

    Pickled, it is what another process opens anew.

    Attributes:
        path: what the user named with --data.
        name: what records call it.
        labels: (N,) int64.
        class_names: a name for each label.
        identity: SHA-256 that changes with what the source holds; reading no image is needed for it.
        random_access: whether one image is read as fast alone as among its neighbours.
    """

    path: Path
    name: str
    labels: np.ndarray
    class_names: list[str]
    identity: str
    random_access: bool = True

    @abc.abstractmethod
    def read(self, item: int) -> Content:
        """An image as it is stored."""

    @abc.abstractmethod
    def describe(self, item: int) -> str:
        """How messages call an image."""

    def read_block(self, start: int, stop: int) -> Reader:
        """`read` for the items from `start` to before `stop`, faster where neighbours are stored together."""
        del start, stop
        return self.read

    def decode(self, item: int, size: int, read: Reader | None = None) -> np.ndarray | str:
        """Pixels (S, S, 3) uint8, or what is wrong with a damaged image.

        Raises:
            FileNotFoundError, OSError: in one line, where the file has vanished or cannot be read for another reason
                than its content.
        """
        try:
            content = (read or self.read)(item)
            return decode_image(content, size) if isinstance(content, bytes) else fit_pixels(content, size)
        except DAMAGE as error:
            if is_damage(error):
                return give_reason(error)
            where = f"--data {self.path}: {self.describe(item)}"
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{where} has vanished; put it back and run the same command again") from error
            raise OSError(f"{where} cannot be read ({give_reason(error)})") from error


class StoredImages(ImageSource):
    """Pixels (N, H, W, 3) uint8 in memory, of a release whose files are arrays."""

    def __init__(self, path: Path, name: str, pixels: np.ndarray, labels: Sequence[int], class_names: list[str]):
        self.path, self.name, self.pixels = path, name, pixels
        self.labels, self.class_names = np.asarray(labels, dtype=np.int64), class_names
        self.identity = digest(name, hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(), list(labels))

    def read(self, item: int) -> np.ndarray:
        return self.pixels[item]

    def describe(self, item: int) -> str:
        return f"image {item}"


def digest(*parts: object) -> str:
    """SHA-256 of what describes a source."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()


def check_labels(where: str, labels: np.ndarray, class_names: list[str] | None) -> list[str]:
    """Refuses labels that no class has; returns the classes' names, each once, numbers where there are none.

    Raises:
        ValueError: in one line that begins with `where`.
    """
    if labels.size == 0:
        raise ValueError(f"{where}: holds no images")
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise ValueError(f"{where}: a label is {least}, expected 0 or more (releases mark unlabelled images so)")
    if class_names is None:
        if most >= max(1_000, 10 * labels.size):  # a head with that many rows would be the first to notice
            raise ValueError(f"{where}: a label is {most}, but there are {labels.size} images and no class names")
        return [str(label) for label in range(most + 1)]
    if most >= len(class_names):
        raise ValueError(f"{where}: a label is {most}, but {len(class_names)} classes are named")
    repeated = {name for name in class_names if class_names.count(name) > 1}
    return [f"{name} ({label})" if name in repeated else name for label, name in enumerate(class_names)]
