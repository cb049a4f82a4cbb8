"""The HDF5 releases: modelnet40_ply_hdf5_2048 and ShapeNet-Part's hdf5_data, 2,048 points a shape, y up.

D shapes, P points. The files hold data (D, P, 3), label (D, 1), and for parts pid (D, P), part ids of all categories.
Points keep their order, of which the field's networks take the first 1,024. They are turned to z up and normalised.
"""

from __future__ import annotations

import io
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from pointcloud.clouds import CloudSet, normalise, quantise
from pointcloud.releases.file_source import FileSource
from pointcloud.releases.shapenetpart import as_part_set, check_parts, find_category, turn_up
from shared_attn.runtime.extras import importing
from shared_attn.runtime.hdf5 import HDF5_ERRORS, find_dataset
from shared_attn.runtime.messages import one_line

EXPECTED_MODELNET = "shape_names.txt, ply_data_train*.h5 and ply_data_test*.h5"
EXPECTED_PARTS = "all_object_categories.txt, ply_data_train*.h5, ply_data_val*.h5 and ply_data_test*.h5"
CLASS_FILE, CATEGORY_FILE = "shape_names.txt", "all_object_categories.txt"


def read_modelnet_hdf5(source: FileSource, split: str, *, num_points: int, **_: Any) -> tuple[CloudSet, list[str]]:
    """The first `num_points` of each cloud of a split, and names made of split and number (the release has none).

    Raises:
        ValueError: a file that is missing or damaged, or holds something else.
    """
    listed = source.find(CLASS_FILE)
    assert listed is not None
    class_names = source.read_lines(listed)
    arrays = [_read(source, name, ("data", "label")) for name in _list_files(source, listed, split)]
    label = _concatenate(arrays, "label")
    if label.min() < 0 or label.max() >= len(class_names):
        raise ValueError(
            f"{source.path}: labels {label.min()} to {label.max()}, expected 0 to {len(class_names) - 1} for the names "
            f"in {CLASS_FILE}"
        )
    points = _store(source, _concatenate(arrays, "data"), num_points)
    name = f"modelnet{len(class_names)}"
    clouds = CloudSet(torch.from_numpy(points), torch.from_numpy(label), class_names, source={"name": name})
    return clouds, [f"{split}_{number:05d}" for number in range(len(label))]


def read_shapenetpart_hdf5(source: FileSource, split: str, *, num_points: int, **_: Any) -> tuple[CloudSet, list[str]]:
    """As `read_modelnet_hdf5`, with part ids; train is the training and validation files together, as is usual."""
    listed = source.find(CATEGORY_FILE)
    assert listed is not None
    categories = [find_category(source.describe(listed), line) for line in source.read_lines(listed)]
    parts_of_split = ("train", "val") if split == "train" else ("test",)
    files = [name for part in parts_of_split for name in _list_files(source, listed, part)]
    arrays = [_read(source, name, ("data", "label", "pid")) for name in files]
    label = _concatenate(arrays, "label")
    if label.min() < 0 or label.max() >= len(categories):
        raise ValueError(f"{source.path}: labels {label.min()} to {label.max()}, but {len(categories)} categories")
    label = np.array(categories)[label]
    parts = _concatenate(arrays, "pid")[:, :num_points]
    for category in np.unique(label).tolist():
        check_parts(f"{source.path}: shapes of the {split} split", parts[label == category], category)
    clouds = as_part_set(_store(source, _concatenate(arrays, "data"), num_points), label.tolist(), parts)
    return clouds, [f"{split}_{number:05d}" for number in range(len(label))]


def _list_files(source: FileSource, listed: PurePosixPath, part: str) -> list[PurePosixPath]:
    """ply_data_PART0.h5, ply_data_PART1.h5 ... beside the list, in the order of their numbers."""
    found = []
    for name in source.names:
        match = re.fullmatch(rf"ply_data_{part}(\d+)\.h5", name.name)
        if match and name.parent == listed.parent:
            found.append((int(match[1]), name))
    if not found:
        raise ValueError(f"{source.path}: holds no ply_data_{part}*.h5")
    numbers = [number for number, _ in sorted(found)]
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{source.path}: of ply_data_{part}0.h5 to {part}{numbers[-1]}.h5 some are missing")
    return [name for _, name in sorted(found)]


def _read(source: FileSource, name: PurePosixPath, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of one file, checked: data (D, P, 3), label (D,), pid (D, P)."""
    with importing(str(source.describe(name))):
        import h5py

    where, arrays = source.describe(name), {}
    try:
        with h5py.File(io.BytesIO(source.read(name)), "r") as file:
            for key in wanted:
                if (dataset := find_dataset(file, key)) is None:
                    raise ValueError(f"{where}: holds no {key}; expected {', '.join(wanted)}")
                arrays[key] = np.asarray(dataset)
    except HDF5_ERRORS as error:
        if str(error).startswith(str(where)):
            raise
        raise ValueError(f"{where}: not a readable HDF5 file ({one_line(error)})") from error
    data = arrays["data"]
    if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f" or 0 in data.shape:
        raise ValueError(f"{where}: data is {data.dtype} {data.shape}, expected floats (shapes, points, 3)")
    for key, shape in (("label", data.shape[:1]), ("pid", data.shape[:2])):
        if key in arrays:
            array = arrays[key]
            if array.dtype.kind not in "iu" or array.size != np.prod(shape) or array.shape[0] != shape[0]:
                raise ValueError(f"{where}: {key} is {array.dtype} {array.shape}, expected integers {shape}")
            arrays[key] = array.reshape(shape).astype(np.int64)
    return arrays


def _concatenate(arrays: list[dict[str, np.ndarray]], key: str) -> np.ndarray:
    return np.concatenate([part[key] for part in arrays])


def _store(source: FileSource, data: np.ndarray, num_points: int) -> np.ndarray:
    """(D, P, 3) -> (D, num_points, 3) int16."""
    if num_points > data.shape[1]:
        raise ValueError(
            f"--num-points {num_points}: {source.path} holds {data.shape[1]} points a shape; expected at most those"
        )
    bad = int((~np.isfinite(data)).any(axis=(1, 2)).sum())
    if bad:
        raise ValueError(f"{source.path}: {bad} of {len(data)} clouds have a coordinate that is NaN or infinite")
    turned = turn_up(data[:, :num_points].astype(np.float64))
    return np.stack([quantise(normalise(cloud)) for cloud in turned])
