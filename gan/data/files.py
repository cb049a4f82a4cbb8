"""Images in a folder or a zip of `class/image.jpg`.

Rules, the same for both:
- The class is the first folder under the folders that all images share. Where a folder `train` lies beside `val` or
  `test`, it alone is the training split; the test split is `test`, else `val`, `valid` or `validation`.
- Hidden files and files that are not images by their name are left out; classes and files are sorted by name. Images
  without any folder make one class.
- Nothing is extracted: a zip's entries are only read.

So ImageNet is read as ILSVRC2012's folder of class folders, or the folder CLS-LOC around its train and val.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from gan.data.decoding import MAX_FILE_BYTES
from gan.data.source import ROLES, ImageSource, cache_folder, check_labels, digest
from shared_attn.runtime.archives import ZIP_ERRORS, open_zip

__all__ = ["FileImages", "ImageFile", "cache_folder", "list_files", "open_files", "read_texts"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class ImageFile:
    """One image in a source: where it is, its class, and what tells a changed file from the same one."""

    path: str
    class_name: str
    stamp: tuple[int, int]


class FileImages(ImageSource):
    """The image files of a folder or a zip, in the order given."""

    def __init__(
        self, path: Path, name: str, files: Sequence[ImageFile], names: Sequence[tuple[str, str]] | None = None
    ):
        """`names`: each class as the files have it, and what to call it; all classes, in the order of their labels."""
        if names is None:
            names = [(found, found) for found in sorted({file.class_name for file in files})]
        self.path, self.name = path, name
        number = {key: label for label, (key, _) in enumerate(names)}
        self.labels = np.array([number[file.class_name] for file in files], dtype=np.int64)
        self.class_names = check_labels(f"--data {path}", self.labels, [shown for _, shown in names])
        self.identity = digest([(file.path, file.stamp) for file in files], names)
        # Arrays, not a million objects: forked processes then share them.
        self._paths = np.array([os.fsencode(file.path) for file in files])
        self._sizes = np.array([file.stamp[0] for file in files], dtype=np.int64)
        self._zip = None if path.is_dir() else ZipReader(path)

    def read(self, item: int) -> bytes:
        if self._sizes[item] > MAX_FILE_BYTES:
            raise ValueError(f"{self._sizes[item]} bytes, at most {MAX_FILE_BYTES} are read")
        name = self.describe(item)
        return (self.path / name).read_bytes() if self._zip is None else self._zip.read(name)

    def describe(self, item: int) -> str:
        return os.fsdecode(self._paths[item])


class ZipReader:
    """A zip's entries, read from any thread and from processes forked off this one."""

    def __init__(self, path: Path):
        self._path, self._process = path, os.getpid()
        self._archive = zipfile.ZipFile(path)  # which `open_zip` has seen

    def read(self, name: str) -> bytes:
        if self._process != os.getpid():  # a fork shares the open file's position; the directory it may share
            self._archive.fp, self._process = open(self._path, "rb"), os.getpid()  # noqa: SIM115, open while we are
        return self._archive.read(name)

    def __reduce__(self) -> tuple[type[ZipReader], tuple[Path]]:
        return ZipReader, (self._path,)


def open_files(path: Path, split: str = "train") -> FileImages:
    """The images of a split of a folder or a zip of class folders.

    Raises:
        ValueError: in one line, for a source that is neither, is damaged or encrypted, or lacks images or the split.
    """
    stamps = list_files(path)
    if not stamps:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(f"--data {path}: holds no images, expected class/image with one of the endings {kinds}")
    folders = {file: PurePosixPath(file).parts[:-1] for file in stamps}
    shared = len(os.path.commonprefix(list(folders.values())))
    tops = {parts[shared] for parts in folders.values() if len(parts) > shared}
    name, names = path.name, None
    if "train" in tops and tops <= {role for roles in ROLES.values() for role in roles}:
        chosen = next((role for role in ROLES[split] if role in tops), None)
        if chosen is None:
            raise ValueError(f"--data {path}: has no folder {' or '.join(ROLES[split])} beside train")
        train = _find_classes(path, folders, shared, "train")
        found = train if split == "train" else _find_classes(path, folders, shared, chosen)
        if unknown := sorted(set(found.values()) - set(train.values())):
            raise ValueError(f"--data {path}: {chosen} has a class {unknown[0]} that train lacks")
        names = [(class_name, class_name) for class_name in sorted(set(train.values()))]
        name += "" if split == "train" else f"-{chosen}"
    elif split == "test":
        raise ValueError(f"--data {path}: is one split alone, expected folders train and {' or '.join(ROLES['test'])}")
    else:
        found = _find_classes(path, folders)
    files = [ImageFile(file, class_name, stamps[file]) for file, class_name in found.items()]
    return FileImages(path, name, sorted(files, key=lambda file: (file.class_name, file.path)), names)


def _find_classes(
    path: Path, folders: dict[str, tuple[str, ...]], depth: int = 0, role: str | None = None
) -> dict[str, str]:
    """The class of each file, or of each that lies under a folder `role` at that depth."""
    inside = {file: parts for file, parts in folders.items() if role is None or parts[depth : depth + 1] == (role,)}
    shared = len(os.path.commonprefix(list(inside.values())))
    loose = [file for file, parts in inside.items() if len(parts) == shared]
    if loose and len(loose) < len(inside):
        raise ValueError(f"--data {path}: {loose[0]} lies beside the class folders, expected class/image.jpg")
    single = next(iter(inside.values()))[-1] if shared else path.stem
    return {file: single if loose else parts[shared] for file, parts in inside.items()}


def list_files(path: Path) -> dict[str, tuple[int, int]]:
    """Names of the image files in a folder or a zip, each with size and time or CRC."""
    return _list_folder(path) if path.is_dir() else _list_zip(path)


def read_texts(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Lines of those of the text files that a folder or a zip holds; of none where it is no zip.

    Raises:
        ValueError: in one line, for one that is no text.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        archive = None
        if not path.is_dir():
            if not zipfile.is_zipfile(path):
                return {}
            archive = stack.enter_context(_open_zip(path))
        for name in names:
            try:
                content = (path / name).read_bytes() if archive is None else archive.read(name)
                found[name] = content.decode("utf-8").splitlines()
            except (FileNotFoundError, NotADirectoryError, KeyError):
                continue
            except ZIP_ERRORS as error:
                raise ValueError(f"--data {path}: {name} in it is no readable text ({error})") from error
            except OSError as error:
                raise OSError(f"--data {path}: {name} in it cannot be read ({error.strerror})") from error
    return found


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _list_folder(folder: Path) -> dict[str, tuple[int, int]]:
    stamps = {}
    entered: set[str] = set()
    for root, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:  # a link back to a folder above
            below.clear()
            continue
        entered.add(real)
        for name in names:
            path = Path(root, name)
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            if _is_image(relative) and path.is_file():
                status = path.stat()
                stamps[str(relative)] = (status.st_size, status.st_mtime_ns)
    return stamps


def _list_zip(path: Path) -> dict[str, tuple[int, int]]:
    with _open_zip(path) as archive:
        entries = [entry for entry in archive.infolist() if _is_image(PurePosixPath(entry.filename))]
    if any(entry.flag_bits & 1 for entry in entries):
        raise ValueError(f"--data {path}: the zip is encrypted, expected one without a password")
    return {entry.filename: (entry.file_size, entry.CRC) for entry in entries}


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return open_zip(path)
    except ValueError as error:
        raise ValueError(f"--data {path}: {error}; expected a folder or a zip of images") from error
