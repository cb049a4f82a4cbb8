"""Writes the public releases in their exact formats, with a few shapes each; used by several tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

from pointcloud.releases.shapenetpart import CATEGORIES, PART_COUNT, PART_START

UPRIGHT = np.array([1.0, 5.0, 2.0])  # extent along the files' axes: y is up in them


def cloud(seed: int, count: int) -> np.ndarray:
    """An upright box of points away from the origin, in which part follows from height."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)) * UPRIGHT + 7


def parts_of(points: np.ndarray, category: int) -> np.ndarray:
    """Heights in equal steps: the category's parts, bottom first."""
    height = (points[:, 1] - 2) / 10
    return PART_START[category] + np.minimum((height * PART_COUNT[category]).astype(int), PART_COUNT[category] - 1)


def write_shapenetpart_text(root: Path, tokens: dict[str, list[tuple[str, str]]], count: int = 60) -> None:
    """{list: [(synset, token)]} as shapenetcore_partanno_segmentation_benchmark_v0_normal has it."""
    (root / "train_test_split").mkdir(parents=True)
    lines = "".join(f"{category}\t{synset}\n" for synset, category, _ in CATEGORIES)
    (root / "synsetoffset2category.txt").write_text(lines)
    numbers = {synset: number for number, (synset, _, _) in enumerate(CATEGORIES)}
    for name, shapes in tokens.items():
        listed = [f"shape_data/{synset}/{token}" for synset, token in shapes]
        (root / "train_test_split" / f"shuffled_{name}_file_list.json").write_text(json.dumps(listed))
        for synset, token in shapes:
            (root / synset).mkdir(exist_ok=True)
            points = cloud(sum(token.encode()), count)
            parts = parts_of(points, numbers[synset])
            rows = [
                " ".join([*(f"{value:.5f}" for value in (*point, 0.0, 0.6, 0.8)), f"{part:.6f}"])
                for point, part in zip(points, parts, strict=True)
            ]
            (root / synset / f"{token}.txt").write_text("\n".join(rows) + "\n")


def write_h5(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")


def write_shapenetpart_hdf5(root: Path, count: int = 50) -> None:
    """As shapenet_part_seg_hdf5_data.zip has it: hdf5_data/ply_data_{train,val,test}*.h5."""
    root.mkdir(parents=True)
    lines = "".join(f"{category}\t{synset}\n" for synset, category, _ in CATEGORIES)
    (root / "all_object_categories.txt").write_text(lines)
    seed = 0
    for name, labels in (("train0", [0, 15]), ("train1", [10]), ("val0", [4]), ("test0", [8, 0])):
        clouds = np.stack([cloud(seed + place, count) for place in range(len(labels))])
        seed += len(labels)
        parts = np.stack([parts_of(points, label) for points, label in zip(clouds, labels, strict=True)])
        write_h5(
            root / f"ply_data_{name}.h5",
            data=clouds.astype(np.float32),
            label=np.array(labels, dtype=np.uint8)[:, None],
            pid=parts.astype(np.uint8),
        )


def write_modelnet_hdf5(root: Path, count: int = 50) -> None:
    root.mkdir(parents=True)
    (root / "shape_names.txt").write_text("airplane\nchair\nnight_stand\n")
    for split, files in (("train", [[0, 2], [1]] + [[2]] * 9), ("test", [[1, 0]])):
        names = [f"ply_data_{split}{number}.h5" for number in range(len(files))]
        (root / f"{split}_files.txt").write_text("".join(f"data/modelnet40_ply_hdf5_2048/{name}\n" for name in names))
        for number, (name, labels) in enumerate(zip(names, files, strict=True)):
            data = np.stack([cloud(100 * number + place, count) for place in range(len(labels))]).astype(np.float32)
            write_h5(root / name, data=data, label=np.array(labels, np.uint8)[:, None], normal=np.zeros_like(data))


def write_modelnet_text(root: Path, count: int = 100) -> None:
    """modelnet40_normal_resampled: the axes of the meshes in the order x, z, y, so y is up."""
    root.mkdir(parents=True)
    (root / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\nxbox\n")
    (root / "modelnet10_shape_names.txt").write_text("chair\nnight_stand\n")
    lists = {"train": ["chair_0001", "night_stand_0001", "xbox_0001", "chair_0002"], "test": ["night_stand_0002"]}
    for split, names in lists.items():
        for variant in ("modelnet40", "modelnet10"):
            kept = [name for name in names if variant == "modelnet40" or "xbox" not in name]
            (root / f"{variant}_{split}.txt").write_text("\n".join(kept) + "\n")
        for name in names:
            folder = root / name.rpartition("_")[0]
            folder.mkdir(exist_ok=True)
            rows = [
                ",".join(f"{value:.6f}" for value in (*point, 0, 0, 1)) for point in cloud(sum(name.encode()), count)
            ]
            (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")


def pack(folder: Path, target: Path) -> Path:
    """The folder as a zip that holds it, as the public ones do, with what macOS adds."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
        archive.writestr(f"__MACOSX/{folder.name}/._shape_names.txt", b"\0")
        archive.writestr("__MACOSX/._synsetoffset2category.txt", b"\0")
    return target


def write_mesh(path: Path, size: float, header: str = "OFF\n8 6 0\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = [(x, y, z) for z in (0, 9) for x, y in ((0, 0), (size, 0), (size, 4), (0, 4))]
    faces = "3 0 1 2\n3 0 2 3\n3 4 5 6\n3 4 6 7\n3 0 1 5\n3 0 5 4\n"
    path.write_text(header + "".join(f"{x} {y} {z}\n" for x, y, z in corners) + faces)


def write_modelnet_off(root: Path) -> None:
    for category in ("bed", "night_stand"):
        for number in range(6):
            # Glued headers, and the same names in both classes and both splits.
            header = "OFF8 6 0\n" if number % 2 else "OFF\n8 6 0\n"
            for split in ("train", "test"):
                write_mesh(root / category / split / f"shape_{number}.off", 3 + number + len(split), header)
