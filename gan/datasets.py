"""Named and given image data, as one uint8 tensor with class numbers.

Legend: N images, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gan.image_files import RESIDENT_BYTES, decode_images, list_images

DATA_FOLDER = Path("data")  # where `scripts/prepare_data.py` and downloads put named sets


@dataclass(frozen=True)
class ImageSet:
    """Images, their classes, and what identifies them.

    Attributes:
        name: what the data is called in records, with its split (`cifar10-train.zip`, `shapes-train`).
        images: (N, H, W, 3) uint8; it may be mapped from a file.
        labels: (N,) int64.
        class_names: a name for each label.
        hash: SHA-256 over names, labels and pixels (over the list of files, where the images are mapped).
        skipped: a line for each file that could not be read.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: list[str]
    hash: str
    skipped: list[str] = field(default_factory=list)

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


def load_image_set(data: str, image_size: int) -> ImageSet:
    """The images a user names with `--data`: a name of DATASETS, a folder, or a zip.

    Raises:
        ValueError, FileNotFoundError, OSError: in one line that names `--data`.
    """
    if data in DATASETS:
        return DATASETS[data](image_size)
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(
            f"--data {data}: no such file or folder; expected one, or a name out of {', '.join(DATASETS)}"
        )
    return _load_path(path, image_size)


def _load_path(path: Path, image_size: int) -> ImageSet:
    if (path / "cifar-10-batches-py").is_dir():
        return _load_cifar10_release(path, image_size, download=False)
    files = list_images(path)
    pixels, rows, skipped = decode_images(path, files, image_size)
    class_names = sorted({file.class_name for file in files})
    number = {name: index for index, name in enumerate(class_names)}
    labels = torch.tensor([number[files[row].class_name] for row in rows])
    images = torch.from_numpy(pixels)
    if images.nbytes > RESIDENT_BYTES:
        identity = hashlib.sha256(repr([(file.path, file.stamp) for file in files]).encode()).hexdigest()
    else:
        identity = _hash_pixels(images, labels, class_names)
    return ImageSet(path.name, images, labels, class_names, identity, skipped)


def _hash_pixels(images: Tensor, labels: Tensor, class_names: list[str]) -> str:
    digest = hashlib.sha256(repr((class_names, tuple(images.shape))).encode())
    digest.update(labels.numpy().tobytes())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def _load_shapes(image_size: int) -> ImageSet:
    from shared_attn.shapes import CLASS_NAMES, load_images

    drawn = load_images("train", size=image_size)
    images = torch.as_tensor(drawn.images).permute(0, 2, 3, 1).contiguous()  # (N, H, W, 3)
    labels = torch.as_tensor(drawn.label).long()
    names = list(CLASS_NAMES)
    return ImageSet("shapes-train", images, labels, names, _hash_pixels(images, labels, names))


def _load_cifar10(image_size: int) -> ImageSet:
    prepared = _find_prepared("cifar10")
    if prepared is not None:
        return _load_path(prepared, image_size)
    return _load_cifar10_release(DATA_FOLDER / "cifar10", image_size, download=True)


def _load_cifar10_release(folder: Path, image_size: int, *, download: bool) -> ImageSet:
    """The python release of CIFAR-10; torchvision checks its files' MD5 before it reads them."""
    if image_size != 32:
        raise ValueError(f"--data {folder}: CIFAR-10's release has 32 x 32 pixels, but image_size is {image_size}")
    from torchvision.datasets import CIFAR10

    try:
        release = CIFAR10(str(folder), train=True, download=download)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"--data cifar10: {reason}; put cifar-10-python.tar.gz into {folder}, or give a folder or zip of images"
        ) from error
    images, labels = torch.from_numpy(release.data), torch.tensor(release.targets)
    names = list(release.classes)
    return ImageSet("cifar10-train", images, labels, names, _hash_pixels(images, labels, names))


def _find_prepared(name: str) -> Path | None:
    candidates = (DATA_FOLDER / f"{name}.zip", DATA_FOLDER / name)
    return next((path for path in candidates if path.exists()), None)


def _load_prepared(name: str, source: str) -> Callable[[int], ImageSet]:
    """A set that has to lie there already: `source` says what to fetch."""

    def load(image_size: int) -> ImageSet:
        prepared = _find_prepared(name)
        if prepared is None:
            raise FileNotFoundError(
                f"--data {name}: put {source} at {DATA_FOLDER / name}.zip or {DATA_FOLDER / name}/, or give its path"
            )
        return _load_path(prepared, image_size)

    return load


DATASETS: dict[str, Callable[[int], ImageSet]] = {
    "shapes": _load_shapes,
    "cifar10": _load_cifar10,
    "tiny-imagenet": _load_prepared("tiny-imagenet", "tiny-imagenet-200.zip (or its train folder)"),
    "imagenet128": _load_prepared("imagenet128", "ImageNet's training images as class/image.jpg"),
}
