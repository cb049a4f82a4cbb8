"""modelnet40_normal_resampled: text clouds of 10,000 points a shape, CLASS/NAME.txt, with lists of names.

N points. Each line is x, y, z and the normal. The files' axes are those of the OFF meshes in the order x, z, y, which
is a mirror image; they are read as x, y, z again, so that both releases agree and z is up.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from pointcloud.clouds import CloudSet, draw_order, normalise, quantise
from pointcloud.releases.conversion import convert
from pointcloud.releases.file_source import FileSource
from shared_attn.runtime.seeding import mix_seed

EXPECTED = "modelnet40_shape_names.txt, modelnet40_train.txt, modelnet40_test.txt and CLASS/NAME.txt"
LARGEST = 1e30  # coordinate whose square can be computed with
VARIANTS = ("modelnet40", "modelnet10")


def recognises(source: FileSource) -> bool:
    return any(source.find(f"{variant}_shape_names.txt") for variant in VARIANTS)


def read_text_release(
    source: FileSource, split: str, *, dataset: str = "", num_points: int, seed: int, workers: int = 1
) -> tuple[CloudSet, list[str]]:
    """The clouds of a split, drawn from the shapes' points without repetition where they suffice, and their names.

    Args:
        dataset: modelnet40 or modelnet10, the release holds both; anything else: the first of them that is there.

    Raises:
        ValueError: a list or a cloud that is missing or cannot be read.
    """
    there = [variant for variant in VARIANTS if source.find(f"{variant}_shape_names.txt")]
    variant = dataset if dataset in there else there[0]
    listed = source.find(f"{variant}_shape_names.txt")
    assert listed is not None
    class_names = source.read_lines(listed)
    names = list(dict.fromkeys(source.read_lines(listed.with_name(f"{variant}_{split}.txt"))))
    classes = [name.rpartition("_")[0] for name in names]
    unknown = sorted(set(classes) - set(class_names))
    if unknown or not names:
        said = f"names the classes {', '.join(unknown)}, which {listed.name} lacks" if unknown else "is empty"
        raise ValueError(f"{source.path}: {variant}_{split}.txt {said}")
    members = [listed.parent / category / f"{name}.txt" for category, name in zip(classes, names, strict=True)]
    work = partial(draw_cloud, num_points=num_points, seed=seed)
    points = convert(source, work, members, workers=workers, label=f"{variant} {split}")
    label = torch.tensor([class_names.index(category) for category in classes])
    clouds = CloudSet(torch.from_numpy(np.stack(points)), label, class_names, source={"name": variant})
    return clouds, names


def draw_cloud(source: FileSource, name: PurePosixPath, *, num_points: int, seed: int) -> np.ndarray:
    """(num_points, 3) int16; follows from the file, its name and the seed alone."""
    table = parse_table(source.describe(name), source.read(name), columns=6)
    order = draw_order(len(table), num_points, mix_seed(seed, name.stem))
    return quantise(normalise(table[order][:, [0, 2, 1]]))


def parse_table(path: Path, content: bytes, columns: int) -> np.ndarray:
    """(N, columns) float64 from lines of numbers between commas or blanks.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    lines = content.replace(b",", b" ").splitlines()
    expected = f"expected lines of {columns} numbers"
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and len(words) != columns:
            raise ValueError(f"{path}: line {number} has {len(words)} words, {expected}")
    try:
        table = np.array(b" ".join(lines).split(), dtype=np.float64).reshape(-1, columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}, {expected}") from error
    if len(table) == 0:
        raise ValueError(f"{path}: holds no points, {expected}")
    bad = int((~(np.abs(table[:, :3]) <= LARGEST)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {len(table)} points have a coordinate that is NaN, infinite or too large")
    return table
