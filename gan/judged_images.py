"""The images that are judged, as a stream: drawn from a generator, or read from a folder or a zip.

Legend: B batch, N images, H W pixels. Memory does not grow with N.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.evaluation import BATCH
from gan.generator import Generator
from gan.image_files import DAMAGE, MAX_FILE_BYTES, ImageFile, decode_image, list_images
from gan.sampling import draw_images, draw_latents
from shared_attn.runtime.seeding import create_generator

LATENT_CHUNK = 6400  # latents made at once


@dataclass(frozen=True)
class JudgedImages:
    """Generated images.

    Attributes:
        count: N.
        image_size: H and W.
        batches: starts a pass over all images, (B, 3, H, W) uint8 each, the same in every pass.
        labels: (N,) int64, the class that each was asked for.
        class_names: a name for each label.
        origin: what a report says about them.
    """

    count: int
    image_size: int
    batches: Callable[[], Iterator[Tensor]]
    labels: Tensor
    class_names: list[str]
    origin: dict[str, Any]

    def first(self, count: int) -> Tensor:
        """The first images: (count, 3, H, W) uint8."""
        taken: list[Tensor] = []
        for batch in self.batches():
            taken.append(batch.cpu())
            if sum(map(len, taken)) >= count:
                break
        return torch.cat(taken)[:count]


def drawn_images(generator: Generator, weights: str, count: int, seed: int, truncation: float | None) -> JudgedImages:
    """Samples of a generator, classes in turn, the seeds from `seed` on."""
    labels = torch.arange(count) % generator.num_classes

    def batches() -> Iterator[Tensor]:
        for first in range(0, count, LATENT_CHUNK):
            part = labels[first : first + LATENT_CHUNK]
            z = draw_latents(range(seed + first, seed + first + len(part)), generator.latent_dim, truncation)
            yield from draw_images(generator, z, part)

    shown = generator.header.get("images")
    origin = {"weights": weights, "images_trained": shown, "truncation": truncation, "seed": seed}
    return JudgedImages(count, generator.image_size, batches, labels, generator.class_names, origin)


def stored_images(source: Path, count: int | None) -> JudgedImages:
    """The images of a folder or zip in a fixed random order, or the first `count` in it: any part has all classes.

    Raises:
        ValueError, FileNotFoundError: in one line that names `--images`, before any image is judged: for a source that
            cannot be read, holds too few images, or images that are not all squares of one size.
    """
    try:
        files = list_images(source)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace("--data", "--images", 1)) from error
    if count is not None and count > len(files):
        raise ValueError(f"--count {count}: --images {source} holds {len(files)}")
    order = torch.randperm(len(files), generator=create_generator(0, "judged")).tolist()
    files = [files[place] for place in order[:count]]
    size = _common_size(source, files)
    names = sorted({file.class_name for file in files})
    number = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([number[file.class_name] for file in files])

    def batches() -> Iterator[Tensor]:
        images: list[np.ndarray] = []
        for file, content in _contents(source, files):
            try:
                images.append(decode_image(content, size))
            except DAMAGE as error:
                raise _unreadable(source, file) from error
            if len(images) == BATCH or file is files[-1]:
                yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
                images = []

    return JudgedImages(len(files), size, batches, labels, names, {"images": str(source)})


def first_size(source: Path) -> int:
    """The shorter side of a source's first image.

    Raises:
        ValueError, FileNotFoundError: in one line that names `--data`.
    """
    file = list_images(source)[0]
    try:
        (size,) = [min(_read_size(content)) for _, content in _contents(source, [file])]
    except DAMAGE as error:
        raise ValueError(f"--data {source}: {file.path} cannot be read as an image") from error
    return size


def _common_size(source: Path, files: Sequence[ImageFile]) -> int:
    """The side of all images, from the beginnings of the files."""
    first = 0
    for file, content in _contents(source, files):
        try:
            width, height = _read_size(content)
        except DAMAGE as error:
            raise _unreadable(source, file) from error
        first = first or width
        if (width, height) != (first, first):
            expected = f"expected all images to be squares of one size, here {first} pixels as the first is wide"
            raise ValueError(f"--images {source}: {file.path} has {width} x {height} pixels, {expected}")
    return first


def _unreadable(source: Path, file: ImageFile) -> ValueError:
    return ValueError(f"--images {source}: {file.path} cannot be read as an image; remove it and judge the others")


def _read_size(content: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.size
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _contents(source: Path, files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, bytes]]:
    """The files' bytes, one at a time."""
    archive = None if source.is_dir() else zipfile.ZipFile(source)
    try:
        for file in files:
            if file.stamp[0] > MAX_FILE_BYTES:
                raise ValueError(f"--images {source}: {file.path} has {file.stamp[0]} bytes, {MAX_FILE_BYTES} at most")
            try:
                content = (source / file.path).read_bytes() if archive is None else archive.read(file.path)
            except (*DAMAGE, RuntimeError) as error:
                raise _unreadable(source, file) from error
            yield file, content
    finally:
        if archive is not None:
            archive.close()
