"""Finds the clouds a run asks for: the embedded `shapes`, .npz files, a public release, or a set already in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from pointcloud.clouds import SCALE, CloudSet, read_clouds_file
from shared_attn.runtime.seeding import create_generator

Split = Literal["train", "test"]
SHAPES_PER_CLASS = {"train": 100, "test": 25}


def load_split(data: str | CloudSet | Sequence[Any], dataset: str, split: Split) -> CloudSet:
    """The training or the test clouds.

    Args:
        data: "shapes"; a folder that holds NAME_..._train.npz and NAME_..._test.npz; a folder or a zip of a public
            release, recognised by what lies in it (`pointcloud.releases.readable`); or one .npz file. Beside a file
            with "train" in its name the one with "test" is looked for (and the other way round); a file alone is cut:
            every fifth shape of a class, in a fixed random order, is test. In Python also the clouds themselves: a
            CloudSet, a torch_geometric data set or a list of `Data` (`pointcloud.graphs.clouds_from_graphs`).
        dataset: which data set of the folder, the beginning of its files' names; "" where there is only one.

    Raises:
        ValueError, FileNotFoundError: naming --data and what was expected there.
    """
    if isinstance(data, CloudSet):
        return replace(data, source={"name": "clouds", "split": split, "files": [], **data.source})
    if not isinstance(data, str):
        from pointcloud.graphs import clouds_from_graphs

        return clouds_from_graphs(data)
    if data == "shapes":
        return _load_shapes(split)
    path = Path(data)
    if path.is_dir():
        return _load_folder(path, dataset, split)
    if not path.exists():
        raise FileNotFoundError(f"--data {data}: no such folder or .npz file (the built-in data set is called shapes)")
    if path.suffix == ".npz":
        return _load_file(path, split)
    if path.suffix.lower() == ".zip":
        return _load_release(path, dataset, split)
    raise ValueError(f"--data {data}: expected a folder, a .npz file, a release's .zip, or shapes")


def split_validation(clouds: CloudSet, share: float, seed: int) -> tuple[CloudSet, CloudSet | None]:
    """Sets a share of every class's training clouds apart for validation; None where that is no cloud at all."""
    chosen = []
    for category in clouds.label.unique().tolist():
        items = (clouds.label == category).nonzero().flatten()
        order = torch.randperm(len(items), generator=create_generator(seed, "validation", category))
        chosen.append(items[order[: round(share * len(items))]])
    mask = torch.zeros(len(clouds), dtype=torch.bool)
    mask[torch.cat(chosen)] = True
    validation = clouds.select(mask.nonzero().flatten()) if mask.any() else None
    return clouds.select((~mask).nonzero().flatten()), validation


def _load_shapes(split: Split) -> CloudSet:
    from shared_attn.shapes import CLASS_NAMES, CLASS_PART_COUNT, CLASS_PART_START, PART_NAMES, load_clouds

    shapes = load_clouds(split, per_class=SHAPES_PER_CLASS[split])
    return CloudSet(
        points=shapes.points,
        label=shapes.label.long(),
        class_names=list(CLASS_NAMES),
        unit=SCALE,
        part_label=shapes.part_label,
        part_names=list(PART_NAMES),
        part_start=list(CLASS_PART_START),
        part_count=list(CLASS_PART_COUNT),
        source={"name": "shapes", "split": split, "files": []},
    )


def _load_folder(folder: Path, dataset: str, split: Split) -> CloudSet:
    prefix = "" if dataset == "shapes" else dataset
    found = sorted(folder.glob(f"{prefix}*_{split}.npz"))
    if len(found) == 1:
        return read_clouds_file(found[0], source={"name": dataset_name(found[0]), "split": split})
    if found:
        names = ", ".join(dataset_name(path) for path in found)
        raise ValueError(f"--data {folder}: holds several data sets; say which with --dataset (there are: {names})")
    return _load_release(folder, dataset, split)


def _load_release(path: Path, dataset: str, split: Split) -> CloudSet:
    from pointcloud.releases.file_source import FileSource
    from pointcloud.releases.readable import describe_releases, load_release, recognise

    with FileSource(path) as source:
        release = recognise(source)
        if release is not None:
            return load_release(source, release, dataset, split)
    named = "" if dataset == "shapes" else dataset
    raise ValueError(
        f"--data {path}: holds neither {named or 'NAME'}_..._{split}.npz"
        + (f" (for --dataset {named})" if named else "")
        + f" nor a release that is known by one of: {describe_releases()}"
    )


def _load_file(path: Path, split: Split) -> CloudSet:
    other: Split = "test" if split == "train" else "train"
    if split in path.stem:
        return read_clouds_file(path, source={"name": dataset_name(path), "split": split})
    if other in path.stem:
        sibling = path.with_name(path.name.replace(other, split))
        if not sibling.is_file():
            raise FileNotFoundError(f"--data {path}: the {split} split, {sibling.name}, is not beside it")
        return read_clouds_file(sibling, source={"name": dataset_name(path), "split": split})
    clouds = read_clouds_file(
        path, source={"name": dataset_name(path), "split": f"{split} part of a fixed 80 : 20 cut"}
    )
    train, test = split_validation(clouds, 0.2, seed=0)
    if test is None:
        raise ValueError(f"--data {path}: too few shapes a class to set a fifth of them apart as test")
    return train if split == "train" else test


def dataset_name(path: Path) -> str:
    """modelnet40_1024_train.npz -> modelnet40."""
    return path.stem.split("_")[0]
