"""ModelNet40 and ModelNet10 as their authors published them: OFF meshes in CLASS/train and CLASS/test, z up."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from pointcloud.clouds import CloudSet, normalise, quantise, unique_names
from pointcloud.files.meshes import parse_mesh
from pointcloud.releases.conversion import convert
from pointcloud.releases.file_source import FileSource
from shared_attn.runtime.seeding import mix_seed

EXPECTED = "CLASS/train/*.off and CLASS/test/*.off"


def list_meshes(source: FileSource) -> list[PurePosixPath]:
    """The CLASS/train/*.off and CLASS/test/*.off of a source; in a zip they may lie deeper."""
    return [
        name
        for name in source.names
        if name.suffix.lower() == ".off"
        and name.parent.name in ("train", "test")
        and (len(name.parts) == 3 if source.path.is_dir() else len(name.parts) >= 3)
    ]


def read_off_release(
    source: FileSource, split: str, *, num_points: int, seed: int, workers: int = 1, **_: Any
) -> tuple[CloudSet, list[str]]:
    """The clouds of a split and the shapes' names.

    Each mesh is sampled by area, with a seed of its own, and normalised to the unit sphere around the sample's
    centroid. A name that occurs twice in the split gets its class in front.

    Raises:
        ValueError: no meshes of that split, or one that cannot be read.
    """
    meshes = list_meshes(source)
    class_names = sorted({name.parts[-3] for name in meshes})
    members = [name for name in meshes if name.parent.name == split]
    if not members:
        raise ValueError(f"{source.path}: holds no CLASS/{split}/*.off")
    work = partial(sample_mesh, num_points=num_points, seed=seed)
    points = convert(source, work, members, workers=workers, label=f"{source.path.name} {split}")
    label = torch.tensor([class_names.index(name.parts[-3]) for name in members])
    return CloudSet(torch.from_numpy(np.stack(points)), label, class_names), unique_names(members)


def sample_mesh(source: FileSource, name: PurePosixPath, *, num_points: int, seed: int) -> np.ndarray:
    """(num_points, 3) int16; follows from the mesh, its name and the seed alone."""
    shape = parse_mesh(source.describe(name), source.read(name))
    return quantise(normalise(shape.sample(num_points, mix_seed(seed, name.stem))))
