"""The embedded data set: labelled point clouds and pictures of the catalogue's classes.

Item i of a class and split follows from (seed, split, class, i) alone, so a larger per_class only adds items. Items
stand interleaved: item 0 of every class, then item 1 of every class, and so on. The mesh seeds of train are even, those
of test odd, so no shape is in both. Cloud i and picture i of a class show the same mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared_attn.shapes.cache import cached
from shared_attn.shapes.catalogue import CLASS_NAMES, create_mesh
from shared_attn.shapes.draw import create_generator, hash_seed
from shared_attn.shapes.rendering import TIE, render
from shared_attn.shapes.sampling import sample_surface

Split = Literal["train", "test"]
VERSION = 3  # counts every change of the data made by this package, so that old cache files are left alone
SCALE = 4096  # coordinates are int16 in units of 1 / SCALE


@dataclass(frozen=True)
class ShapeClouds:
    """Labelled clouds of N shapes with P points each.

    points (N, P, 3) int16 in units of 1/4096, in the unit ball around their centroid, z up; normals (N, P, 3) int8 in
    units of 1/127, outward; label (N,) uint8, index into CLASS_NAMES; part_label (N, P) uint8, index into PART_NAMES;
    name: one a shape, "chair_train_0007".
    """

    points: Tensor
    normals: Tensor
    label: Tensor
    part_label: Tensor
    name: list[str]


@dataclass(frozen=True)
class ShapeImages:
    """Pictures: images (N, 3, H, W) uint8 red, green, blue; label (N,) uint8, index into CLASS_NAMES."""

    images: Tensor
    label: Tensor


def mesh_seed(split: Split, class_name: str, index: int, seed: int = 0) -> int:
    """Seed of create_mesh for an item; even for train, odd for test."""
    return hash_seed(seed, split, class_name, index) // 2 * 2 + (split == "test")


def _check(split: str, seed: int, **counts: int) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The work is many small steps: handing them out to several threads takes longer than doing them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _items(per_class: int) -> list[tuple[str, int]]:
    return [(name, index) for index in range(per_class) for name in CLASS_NAMES]


def _labels(per_class: int) -> Tensor:
    return torch.arange(len(CLASS_NAMES), dtype=torch.uint8).repeat(per_class)


def load_clouds(split: Split, *, per_class: int = 100, num_points: int = 2048, seed: int = 0) -> ShapeClouds:
    """Labelled clouds of per_class shapes of each class. ValueError for a split or a number that makes no sense."""
    _check(split, seed, per_class=per_class, num_points=num_points)

    @_one_thread()
    def make() -> dict[str, Tensor]:
        N = per_class * len(CLASS_NAMES)
        points = torch.empty(N, num_points, 3, dtype=torch.int16)
        normals = torch.empty(N, num_points, 3, dtype=torch.int8)
        parts = torch.empty(N, num_points, dtype=torch.uint8)
        for i, (name, index) in enumerate(_items(per_class)):
            shape = mesh_seed(split, name, index, seed)
            place, normal, part = sample_surface(create_mesh(name, shape), num_points, create_generator("cloud", shape))
            place = place - place.mean(0)
            place = place * ((SCALE - 1) / place.norm(dim=1).max().clamp(min=1e-9))  # rounding stays within the ball
            points[i] = (place + 0.5 + TIE).floor().to(torch.int16)
            normals[i] = (normal * 127 + 0.5 + TIE).floor().to(torch.int8)
            parts[i] = part.to(torch.uint8)
        return {"points": points, "normals": normals, "part_label": parts}

    tensors = cached(f"clouds-v{VERSION}-{split}-{per_class}x{num_points}-seed{seed}", make)
    names = [f"{name}_{split}_{index:04d}" for name, index in _items(per_class)]
    return ShapeClouds(tensors["points"], tensors["normals"], _labels(per_class), tensors["part_label"], names)


def load_images(split: Split, *, per_class: int = 500, size: int = 32, seed: int = 0) -> ShapeImages:
    """Pictures of per_class shapes of each class. ValueError for a split or a number that makes no sense."""
    _check(split, seed, per_class=per_class, size=size)

    @_one_thread()
    def make() -> dict[str, Tensor]:
        images = torch.empty(per_class * len(CLASS_NAMES), 3, size, size, dtype=torch.uint8)
        items = _items(per_class)
        for i in range(0, len(items), 512):
            chunk = [(name, mesh_seed(split, name, index, seed)) for name, index in items[i : i + 512]]
            meshes = [create_mesh(name, shape) for name, shape in chunk]
            images[i : i + len(chunk)] = render(meshes, [shape for _, shape in chunk], size=size)
        return {"images": images}

    tensors = cached(f"images-v{VERSION}-{split}-{per_class}x{size}px-seed{seed}", make)
    return ShapeImages(tensors["images"], _labels(per_class))
