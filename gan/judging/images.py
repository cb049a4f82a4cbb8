"""The images that are judged, as a stream: drawn from a generator, or read from what holds images.

Legend: B batch, N images, H W pixels. Memory does not grow with N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.data.datasets import open_source
from gan.data.decoding import DAMAGE, open_image
from gan.data.source import Content, ImageSource
from gan.generator import Generator
from gan.judging.evaluation import BATCH
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
    """Samples of a generator, the seeds from `seed` on, classes in turn."""
    labels = (seed + torch.arange(count)) % generator.num_classes  # the class a seed has in a folder of samples too

    def batches() -> Iterator[Tensor]:
        for first in range(0, count, LATENT_CHUNK):
            part = labels[first : first + LATENT_CHUNK]
            z = draw_latents(range(seed + first, seed + first + len(part)), generator.latent_dim, truncation)
            yield from draw_images(generator, z, part)

    shown = generator.header.get("images")
    origin = {"weights": weights, "images_trained": shown, "truncation": truncation, "seed": seed}
    return JudgedImages(count, generator.image_size, batches, labels, generator.class_names, origin)


def stored_images(path: Path, count: int | None) -> JudgedImages:
    """The images of any source that `--data` could name, in a fixed random order, or the first `count` in it.

    In random order, any part has all classes.

    Raises:
        ValueError, FileNotFoundError: in one line that names `--images`, before any image is judged: for a source that
            cannot be read, holds too few images, or images that are not all squares of one size.
    """
    if not path.exists():
        raise FileNotFoundError(f"--images {path}: no such file or folder")
    try:
        source = open_source(path)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace("--data", "--images", 1)) from error
    total = len(source.labels)
    if count is not None and count > total:
        raise ValueError(f"--count {count}: --images {path} holds {total}")
    items = torch.randperm(total, generator=create_generator(0, "judged"))[:count]
    size = _common_size(source, items.tolist())

    def batches() -> Iterator[Tensor]:
        for part in items.split(BATCH):
            images = [_decode(source, item, size) for item in part.tolist()]
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    labels = torch.from_numpy(source.labels)[items]
    return JudgedImages(len(items), size, batches, labels, source.class_names, {"images": str(path)})


def first_size(path: Path) -> int:
    """The shorter side of a source's first image.

    Raises:
        ValueError, FileNotFoundError: in one line that names `--data`.
    """
    source = open_source(path)
    try:
        return min(_read_size(source.read(0)))
    except DAMAGE as error:
        raise ValueError(f"--data {path}: {source.describe(0)} cannot be read as an image") from error


def _common_size(source: ImageSource, items: Sequence[int]) -> int:
    """The side of all images."""
    first = 0
    for item in items:
        try:
            width, height = _read_size(source.read(item))
        except DAMAGE as error:
            raise _unreadable(source, item) from error
        first = first or width
        if (width, height) != (first, first):
            expected = f"expected all images to be squares of one size, here {first} pixels as the first is wide"
            raise ValueError(
                f"--images {source.path}: {source.describe(item)} has {width} x {height} pixels, {expected}"
            )
    return first


def _decode(source: ImageSource, item: int, size: int) -> np.ndarray:
    pixels = source.decode(item, size)
    if isinstance(pixels, str):
        raise _unreadable(source, item)
    return pixels


def _unreadable(source: ImageSource, item: int) -> ValueError:
    name = source.describe(item)
    return ValueError(f"--images {source.path}: {name} cannot be read as an image; remove it and judge the others")


def _read_size(content: Content) -> tuple[int, int]:
    """Width and height of an image as it is stored, from its beginning."""
    if isinstance(content, np.ndarray):
        return content.shape[1], content.shape[0]
    with open_image(content) as opened:
        return opened.size
