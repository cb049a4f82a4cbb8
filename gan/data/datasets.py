"""Named and given image data, as one uint8 tensor (or one that is decoded on the way) with class numbers.

What `--data` may name:
- a name of DATASETS, or that and `-test` for its test split;
- a folder or a zip of class folders (gan.data.files), with images of any size: ImageNet's, for one;
- the releases of CIFAR-10, CIFAR-100 and Tiny-ImageNet as they are downloaded (gan.data.releases);
- an HDF5 file (gan.data.hdf5), a parquet file or a folder of them (gan.data.parquet).

How an image of another size or kind becomes S x S RGB, and what happens to a damaged one: gan.data.decoding.

Legend: N images, H W pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan.data import hdf5 as hdf5_images
from gan.data.decoded import Decoded, decode_into_cache, decode_into_memory, find_mapped
from gan.data.files import open_files
from gan.data.packed import pack
from gan.data.parquet import open_parquet
from gan.data.releases import ARCHIVES, open_cifar, open_tiny_imagenet, prepare_images
from gan.data.source import SPLITS, ImageSource, StoredImages, digest
from gan.data.streamed import StreamedImages

DATA_FOLDER = Path("data")  # where `scripts/prepare_data.py` and downloads put named sets
RESIDENT_BYTES = 4 * 2**30  # of pixels that are kept in memory
STREAM_MODES = ("auto", "always", "never")
TEST = "-test"


@dataclass(frozen=True)
class ImageSet:
    """Images, their classes, and what identifies them.

    Attributes:
        name: what the data is called in records, with its split (`cifar10-train.zip`, `shapes-train`).
        images: (N, H, W, 3) uint8: a tensor, which may be mapped from a file, or images decoded when they are indexed.
        labels: (N,) int64.
        class_names: a name for each label.
        hash: SHA-256 over names, labels and pixels (over the list of files, where the images are not in memory).
        skipped: a line for each file that could not be read; streamed images add theirs when they meet them.
        places: the row that stands for each image of the source, damaged ones included; None: its own.
    """

    name: str
    images: Tensor | StreamedImages
    labels: Tensor
    class_names: list[str]
    hash: str
    skipped: list[str] = field(default_factory=list)
    places: Tensor | None = None

    def describe(self) -> dict:
        """What a record says about the data."""
        return {
            "name": self.name,
            "sha256": self.hash,
            "images": len(self.labels),
            "image_size": self.images.shape[1],
            "classes": len(self.class_names),
            "skipped": len(self.skipped),
        }


def load_image_set(data: str, image_size: int, *, split: str = "train", stream: str = "auto") -> ImageSet:
    """The images a user names with `--data`.

    Args:
        data: see above.
        split: train or test, of what has both.
        stream: always: decode images when they are needed, which takes neither memory nor disk (parquet, and HDF5 in
            large chunks, are unpacked into the cache folder once). never: decode all once, up to RESIDENT_BYTES into
            memory, more into a mapped file of the cache folder, which is faster than decoding each epoch anew. auto: as
            never up to RESIDENT_BYTES or where that file is there already, else as always.

    Raises:
        ValueError, FileNotFoundError, OSError: in one line that names `--data`.
    """
    if split not in SPLITS:
        raise ValueError(f"--split {split}: expected {' or '.join(SPLITS)}")
    if stream not in STREAM_MODES:
        raise ValueError(f"--stream {stream}: expected {', '.join(STREAM_MODES)}")
    name = data.removesuffix(TEST)
    if name in DATASETS:
        split = "test" if data.endswith(TEST) else split
        source = _open_shapes(split, image_size) if name == "shapes" else open_source(_find_prepared(name), split)
    else:
        path = Path(data)
        if not path.exists():
            raise FileNotFoundError(
                f"--data {data}: no such file or folder; expected one, or a name out of {', '.join(DATASETS)}"
            )
        source = open_source(path, split)
    return _load(source, image_size, stream)


def open_source(path: Path, split: str = "train") -> ImageSource:
    """What a path holds, recognised by what lies in it.

    Raises:
        ValueError: in one line, for what is none of the kinds above.
    """
    if path.is_file() and path.suffix.lower() in hdf5_images.SUFFIXES:
        if split == "test":
            raise ValueError(f"--data {path}: an HDF5 file is one split; give the test split's own file")
        return hdf5_images.Hdf5Images(path)
    return (
        open_cifar(path, split)
        or open_tiny_imagenet(path, split)
        or open_parquet(path, split)
        or open_files(path, split)
    )


def _load(source: ImageSource, size: int, stream: str) -> ImageSet:
    fits = len(source.labels) * size * size * 3 <= RESIDENT_BYTES
    decoded: Decoded | None = None
    if stream != "always" and fits:
        decoded = decode_into_memory(source, size)
    elif stream == "never":
        decoded = decode_into_cache(source, size)
    elif stream == "auto":
        decoded = find_mapped(source, size)
    names = source.class_names
    if decoded is None:
        images = StreamedImages(source if source.random_access else pack(source), size)
        labels = torch.from_numpy(source.labels)
        return ImageSet(source.name, images, labels, names, _identify(source, size), images.skipped)
    pixels, labels = torch.from_numpy(decoded.images), torch.from_numpy(source.labels[decoded.rows])
    identity = _hash_pixels(pixels, labels, names) if fits else _identify(source, size)
    places = torch.from_numpy(decoded.places) if decoded.skipped else None
    return ImageSet(source.name, pixels, labels, names, identity, decoded.skipped, places)


def _identify(source: ImageSource, size: int) -> str:
    return digest(source.identity, source.class_names, size)


def _hash_pixels(images: Tensor, labels: Tensor, class_names: list[str]) -> str:
    hashed = hashlib.sha256(repr((class_names, tuple(images.shape))).encode())
    hashed.update(labels.numpy().tobytes())
    hashed.update(images.contiguous().numpy().data)
    return hashed.hexdigest()


def _open_shapes(split: str, image_size: int) -> StoredImages:
    from shared_attn.shapes import CLASS_NAMES, load_images

    drawn = load_images("train" if split == "train" else "test", size=image_size)
    pixels = np.ascontiguousarray(torch.as_tensor(drawn.images).permute(0, 2, 3, 1).numpy())  # (N, H, W, 3)
    labels = torch.as_tensor(drawn.label).tolist()
    return StoredImages(Path("shapes"), f"shapes-{split}", pixels, labels, list(CLASS_NAMES))


def _find_prepared(name: str) -> Path:
    """What lies in the data folder for a named set; the release is downloaded where nothing does."""
    archive = ARCHIVES.get(name)
    candidates = [DATA_FOLDER / f"{name}{suffix}" for suffix in (".zip", "", ".parquet", ".h5", ".hdf5")]
    if archive is not None:
        candidates += [DATA_FOLDER / archive.folder, DATA_FOLDER / archive.file]
    if (found := next((path for path in candidates if path.exists()), None)) is not None:
        return found
    if archive is None:
        raise FileNotFoundError(f"--data {name}: put {DATASETS[name]} at {DATA_FOLDER / name}, or give its path")
    try:
        return prepare_images(name, DATA_FOLDER)
    except (ValueError, OSError) as error:
        raise type(error)(f"--data {name}: {error}") from error


# Name -> what it is.
DATASETS = {
    "shapes": "the embedded objects",
    "cifar10": "CIFAR-10, 32 x 32 pixels, 10 classes",
    "cifar100": "CIFAR-100, 32 x 32 pixels, its 100 fine classes",
    "tiny-imagenet": "Tiny-ImageNet, 64 x 64 pixels, 200 classes",
    "imagenet128": "ImageNet's training images, of any size, in a folder or zip of class folders",
}
