"""ShapeNet-Part (Yi et al., 2016): 16 categories, 50 parts, numbered alike in every release; and its text release.

N points, D shapes. The files are y up; they are turned to z up, as all clouds here are.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from pointcloud.clouds import CloudSet, draw_order, normalise, quantise, unique_names
from pointcloud.releases.conversion import convert
from pointcloud.releases.file_source import FileSource
from pointcloud.releases.resampled_modelnet import parse_table
from shared_attn.runtime.seeding import mix_seed

EXPECTED = "synsetoffset2category.txt, train_test_split/shuffled_*_file_list.json and SYNSET/*.txt"
CATEGORY_FILE = "synsetoffset2category.txt"

# WordNet offset, category, parts in the order of their ids. No release names the parts: these names are the usual ones.
CATEGORIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("02691156", "Airplane", ("body", "wing", "tail", "engine")),
    ("02773838", "Bag", ("handle", "body")),
    ("02954340", "Cap", ("crown", "peak")),
    ("02958343", "Car", ("roof", "hood", "wheel", "body")),
    ("03001627", "Chair", ("back", "seat", "leg", "arm")),
    ("03261776", "Earphone", ("earcup", "headband", "wire")),
    ("03467517", "Guitar", ("head", "neck", "body")),
    ("03624134", "Knife", ("blade", "handle")),
    ("03636649", "Lamp", ("base", "shade", "bracket", "stem")),
    ("03642806", "Laptop", ("keyboard", "screen")),
    ("03790512", "Motorbike", ("tank", "seat", "wheel", "handlebar", "light", "frame")),
    ("03797390", "Mug", ("handle", "cup")),
    ("03948459", "Pistol", ("barrel", "handle", "trigger")),
    ("04099429", "Rocket", ("body", "fin", "nose")),
    ("04225987", "Skateboard", ("wheel", "deck", "belt")),
    ("04379243", "Table", ("top", "leg", "drawer")),
)
CLASS_NAMES = [category for _, category, _ in CATEGORIES]
CLASS_OF_SYNSET = {synset: number for number, (synset, _, _) in enumerate(CATEGORIES)}
PART_NAMES = [f"{category}/{part}" for _, category, parts in CATEGORIES for part in parts]
PART_COUNT = [len(parts) for _, _, parts in CATEGORIES]
PART_START = [sum(PART_COUNT[:number]) for number in range(len(CATEGORIES))]


def as_part_set(points: np.ndarray, label: list[int], parts: np.ndarray) -> CloudSet:
    """(D, P, 3) int16, D categories and (D, P) part ids as a set with ShapeNet-Part's names."""
    return CloudSet(
        torch.from_numpy(points),
        torch.tensor(label, dtype=torch.long),
        CLASS_NAMES,
        part_label=torch.from_numpy(parts.astype(np.uint8)),
        part_names=PART_NAMES,
        part_start=PART_START,
        part_count=PART_COUNT,
        source={"name": "shapenetpart"},
    )


def find_category(where: Path, line: str) -> int:
    """Airplane<TAB>02691156, as the releases list their categories -> its number here."""
    number = CLASS_OF_SYNSET.get(line.rsplit(maxsplit=1)[-1])
    if number is None:
        raise ValueError(f"{where}: {line!r} is none of ShapeNet-Part's categories and synsets")
    return number


def check_parts(where: str, parts: np.ndarray, category: int) -> None:
    """Refuses part ids that are not the category's."""
    first, last = PART_START[category], PART_START[category] + PART_COUNT[category] - 1
    if not (parts.min() >= first and parts.max() <= last):  # NaN neither
        raise ValueError(
            f"{where}: part ids {parts.min()} to {parts.max()}, expected {first} to {last} for {CLASS_NAMES[category]}"
        )


def read_shapenetpart_text(
    source: FileSource, split: str, *, num_points: int, seed: int, workers: int = 1, **_: Any
) -> tuple[CloudSet, list[str]]:
    """The clouds of a split, drawn from the shapes' points without repetition where they suffice, and their ids.

    As is usual, train is the published training and validation lists together; a shape that is also in the test list
    is left out of it.

    Raises:
        ValueError: a list or a cloud that is missing or cannot be read, an unknown category or part.
    """
    listed = source.find(CATEGORY_FILE)
    assert listed is not None
    for line in source.read_lines(listed):
        find_category(source.describe(listed), line)
    names = _list_shapes(source, listed, ("test",))
    if split == "train":
        held_out = set(names)
        names = [name for name in _list_shapes(source, listed, ("train", "val")) if name not in held_out]
    if not names:
        raise ValueError(f"{source.path}: its train_test_split lists name no shapes of the {split} split")
    work = partial(_draw_parts, num_points=num_points, seed=seed)
    drawn = convert(source, work, names, workers=workers, label=f"shapenetpart {split}")
    label = [CLASS_OF_SYNSET[name.parent.name] for name in names]
    clouds = as_part_set(np.stack([p for p, _ in drawn]), label, np.stack([p for _, p in drawn]))
    return clouds, unique_names(names)


def _list_shapes(source: FileSource, listed: PurePosixPath, lists: tuple[str, ...]) -> list[PurePosixPath]:
    """SYNSET/TOKEN.txt of the shapes in these lists, each once."""
    names: dict[PurePosixPath, None] = {}
    for part in lists:
        name = listed.parent / "train_test_split" / f"shuffled_{part}_file_list.json"
        try:
            entries = json.loads(source.read(name))
            paths = [PurePosixPath(entry) for entry in entries]
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{source.describe(name)}: not a JSON list of shapes ({error})") from error
        for path in paths:  # shape_data/SYNSET/TOKEN
            if path.parent.name not in CLASS_OF_SYNSET:
                raise ValueError(f"{source.describe(name)}: {str(path)!r} is not shape_data/SYNSET/TOKEN")
            names[listed.parent / path.parent.name / f"{path.name}.txt"] = None
    return list(names)


def _draw_parts(
    source: FileSource, name: PurePosixPath, *, num_points: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(num_points, 3) int16 and (num_points,) part ids, from lines x y z, normal, part id."""
    path: Path = source.describe(name)
    table = parse_table(path, source.read(name), columns=7)
    table = table[draw_order(len(table), num_points, mix_seed(seed, name.stem))]
    check_parts(str(path), table[:, 6], CLASS_OF_SYNSET[name.parent.name])
    return quantise(normalise(turn_up(table[:, :3]))), table[:, 6].astype(np.uint8)


def turn_up(points: np.ndarray) -> np.ndarray:
    """(..., 3) with y up -> z up, by a quarter turn about x."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)
