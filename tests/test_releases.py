"""Public releases, written here in their exact formats with a few shapes each, read from folders and from zips."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from release_files import (
    cloud,
    pack,
    write_h5,
    write_mesh,
    write_modelnet_hdf5,
    write_modelnet_off,
    write_modelnet_text,
    write_shapenetpart_hdf5,
    write_shapenetpart_text,
)

from pointcloud.clouds import CloudSet, read_clouds_file
from pointcloud.datasets import load_split
from pointcloud.releases.file_source import FileSource
from pointcloud.releases.preparation import prepare
from pointcloud.releases.readable import describe_releases, recognise
from pointcloud.releases.shapenetpart import PART_COUNT, PART_NAMES, PART_START

PUBLISHED_PART_START = [0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47]
PUBLISHED_PART_COUNT = [4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))


def check_heights(clouds: CloudSet) -> None:
    """z is up, the sphere is filled, and each point kept the part it had in the file."""
    points = clouds.points.double() * clouds.unit
    torch.testing.assert_close(points.norm(dim=-1).amax(1), torch.ones(len(clouds)).double(), rtol=0, atol=2e-3)
    assert points.mean(1).abs().max() < 1e-3
    extent = points.amax(1) - points.amin(1)
    assert (extent.argmax(1) == 2).all() and (extent.argmin(1) == 0).all()  # file: x 1, y 5 (up), z 2
    if clouds.part_label is not None:
        for shape, parts in zip(points, clouds.part_label.long(), strict=True):
            order = shape[:, 2].argsort()
            assert (parts[order].diff() >= 0).all() and len(parts.unique()) > 1


TOKENS = {
    "train": [("03001627", "aa"), ("02691156", "bb"), ("04379243", "cc"), ("03001627", "aa")],
    "val": [("02691156", "dd"), ("03790512", "both")],
    "test": [("03636649", "ee"), ("02691156", "ff"), ("03790512", "both")],
}


def test_part_ids_are_the_published_ones() -> None:
    assert PART_START == PUBLISHED_PART_START and PART_COUNT == PUBLISHED_PART_COUNT
    assert len(PART_NAMES) == len(set(PART_NAMES)) == 50 and PART_NAMES[30] == "Motorbike/tank"


@pytest.mark.parametrize("packed", [False, True])
def test_shapenetpart_as_text(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "normal"
    write_shapenetpart_text(root, TOKENS)
    data = pack(root, tmp_path / "normal.zip") if packed else root
    train, test = (load_split(str(data), "shapenetpart", split) for split in ("train", "test"))
    # Training and validation lists, each shape once, those of the test list left out.
    assert train.label.tolist() == [4, 0, 15, 0] and test.label.tolist() == [8, 0, 10]
    assert (len(train.class_names), len(train.part_names)) == (16, 50) and train.part_start == PUBLISHED_PART_START
    for clouds in (train, test):
        assert clouds.points.shape[1:] == (2048, 3)  # 60 points in the file: each 34 or 35 times
        counts = np.unique(clouds.points[0].numpy(), axis=0, return_counts=True)[1]
        assert set(counts.tolist()) <= {34, 35} and len(counts) == 60
        check_heights(clouds)
    again = load_split(str(data), "", "train")
    assert torch.equal(again.points, train.points) and again.source["name"] == "shapenetpart"


def test_the_naive_reading_of_one_shape_agrees(tmp_path: Path) -> None:
    """Row by row in float64: rotate by the matrix, centre, scale; the set of (point, part) is the same."""
    root = tmp_path / "normal"
    write_shapenetpart_text(root, {name: [("03790512", "zz")] for name in ("train", "val", "test")}, count=2048)
    clouds = load_split(str(root), "", "test")
    rows = [[float(word) for word in line.split()] for line in (root / "03790512" / "zz.txt").read_text().splitlines()]
    quarter = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    turned = [[sum(quarter[i][j] * row[j] for j in range(3)) for i in range(3)] for row in rows]
    mean = [sum(point[axis] for point in turned) / len(turned) for axis in range(3)]
    radius = max(sum((point[axis] - mean[axis]) ** 2 for axis in range(3)) ** 0.5 for point in turned)
    wanted = sorted(
        (*[round((point[axis] - mean[axis]) / radius * 4096) for axis in range(3)], int(row[6]))
        for point, row in zip(turned, rows, strict=True)
    )
    assert clouds.part_label is not None
    found = sorted(
        (*point, part) for point, part in zip(clouds.points[0].tolist(), clouds.part_label[0].tolist(), strict=True)
    )
    assert np.abs(np.array(found) - np.array(wanted)).max() <= 1


@pytest.mark.parametrize("packed", [False, True])
def test_shapenetpart_as_hdf5(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "hdf5_data"
    write_shapenetpart_hdf5(root)
    with pytest.raises(ValueError, match="--num-points 2048: .* holds 50 points"):
        load_split(str(root), "", "train")
    if packed:
        pack(root, tmp_path / "shapenet_part_seg_hdf5_data.zip")
        root.rename(tmp_path / "elsewhere")
    files = prepare("shapenetpart", tmp_path, num_points=40)
    train, test = (load_split(str(tmp_path), "shapenetpart", split) for split in ("train", "test"))
    assert train.label.tolist() == [0, 15, 10, 4] and test.label.tolist() == [8, 0]
    assert train.points.shape == (4, 40, 3) and len(files) == 2
    for clouds in (train, test):
        check_heights(clouds)


def test_modelnet40_as_hdf5_keeps_the_order_of_points_and_files(tmp_path: Path) -> None:
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    write_modelnet_hdf5(root)
    prepare("modelnet40", tmp_path, release="hdf5", num_points=50)
    train, test = (load_split(str(tmp_path), "modelnet40", split) for split in ("train", "test"))
    assert train.class_names == ["airplane", "chair", "night_stand"]
    assert train.label.tolist() == [0, 2, 1] + [2] * 9  # file 10 after file 9, not after file 1
    check_heights(train)
    check_heights(test)
    last = cloud(1000, 50)
    turned = np.stack([last[:, 0], -last[:, 2], last[:, 1]], axis=1)
    turned -= turned.mean(0)
    turned /= np.linalg.norm(turned, axis=1).max()
    assert np.abs(train.points[-1].numpy() / 4096 - turned).max() < 2e-4


def test_resampled_modelnet_is_no_mirror_image_of_the_meshes(tmp_path: Path) -> None:
    root = tmp_path / "modelnet40_normal_resampled"
    write_modelnet_text(root)
    clouds = load_split(str(root), "", "train")
    assert clouds.class_names == ["chair", "night_stand", "xbox"] and clouds.label.tolist() == [0, 1, 2, 0]
    assert load_split(str(root), "modelnet10", "train").label.tolist() == [0, 1, 0]
    assert clouds.source["name"] == "modelnet40"
    check_heights(clouds)
    mesh = cloud(sum(b"chair_0001"), 100)[:, [0, 2, 1]]  # x, z, y back to x, y, z
    mesh -= mesh.mean(0)
    mesh /= np.linalg.norm(mesh, axis=1).max()
    stored = np.unique(clouds.points[0].numpy(), axis=0) / 4096
    nearest = np.linalg.norm(stored[:, None] - mesh, axis=-1).min(1)
    assert len(stored) == 100 and nearest.max() < 0.03  # the sample's centroid is not quite the cloud's


def test_what_is_read_once_is_cached_until_a_file_changes(tmp_path: Path) -> None:
    root = tmp_path / "resampled"
    write_modelnet_text(root)
    first = load_split(str(root), "", "test")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    path = root / "night_stand" / "night_stand_0002.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:50]) + "\n")
    assert not torch.equal(first.points, load_split(str(root), "", "test").points)


def read_arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_meshes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        write_modelnet_off(out / "ModelNet10")
        paths = prepare("modelnet10", out, num_points=64, workers=workers)
        results.append([read_arrays(path) for path in paths])
    for one, two in zip(*results, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one) and set(one) == set(two)
    train = results[0][0]
    assert len(set(train["name"].tolist())) == 12 and "bed/shape_0" in train["name"].tolist()
    assert prepare("modelnet10", tmp_path / "1", num_points=64, seed=0) == [
        tmp_path / "1" / f"modelnet10_64_{split}.npz" for split in ("train", "test")
    ]
    with pytest.raises(ValueError, match="was made with release=off seed=0, not release=off seed=1"):
        prepare("modelnet10", tmp_path / "1", num_points=64, seed=1)


def test_an_error_in_a_worker_is_the_error_of_the_run(tmp_path: Path) -> None:
    write_modelnet_off(tmp_path / "ModelNet10")
    (tmp_path / "ModelNet10" / "bed" / "test" / "shape_3.off").write_text("OFF\n8 1 0\n0 0 0\n")
    with pytest.raises(ValueError, match=r"shape_3\.off: ") as caught:
        prepare("modelnet10", tmp_path, num_points=16, workers=2)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "modelnet10_16_train.npz").is_file()  # what was done stays
    assert not list(tmp_path.glob("*test*"))


def test_a_zip_with_a_name_twice_or_damaged(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.off", 3)
    content = (tmp_path / "a.off").read_bytes()
    path = tmp_path / "ModelNet10.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name in ("bed/train/.a.off", "bed/train/a.off", "bed/train/a.off", "bed/test/b.off"):
            archive.writestr(f"ModelNet10/{name}", content)
    assert load_split(str(path), "", "train").label.tolist() == [0]
    spoilt = bytearray(path.read_bytes())
    spoilt[spoilt.rfind(b"0 0 0\n3 0 0") + 1] ^= 1  # in the last file's content
    path.write_bytes(spoilt)
    with FileSource(path) as source, pytest.raises(ValueError, match="damaged"):
        for name in source.names:
            source.read(name)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable zip .*remove it to download it anew"):
        prepare("modelnet10", tmp_path)


def test_part_files_are_written_as_they_are_read(tmp_path: Path) -> None:
    write_shapenetpart_text(tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal", TOKENS)
    train, _ = prepare("shapenetpart", tmp_path, num_points=48, workers=2)
    clouds = read_clouds_file(train)
    assert clouds.part_label is not None and clouds.part_start == PUBLISHED_PART_START
    check_heights(clouds)
    assert read_arrays(train)["name"].tolist() == ["aa", "bb", "cc", "dd"]
    alone = prepare("shapenetpart", tmp_path, num_points=49, workers=1)[0]
    assert read_arrays(alone)["points"].shape == (4, 49, 3)


def test_an_unknown_folder_is_told_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("1 2 3\n")
    with pytest.raises(ValueError) as caught:
        load_split(str(tmp_path / "mine"), "lpsb", "train")
    said = str(caught.value)
    assert "\n" not in said and "lpsb_..._train.npz" in said and describe_releases() in said
    for release in ("CLASS/train/*.off", "shape_names.txt", "synsetoffset2category.txt", "ply_data_val*.h5"):
        assert release in said
    with FileSource(tmp_path / "mine") as source:
        assert recognise(source) is None
    (tmp_path / "ModelNet40").mkdir()
    with pytest.raises(ValueError, match="ModelNet40: is not the off release of modelnet40; expected CLASS/train"):
        prepare("modelnet40", tmp_path)
    with pytest.raises(ValueError, match="--release text: .*has off, hdf5|--release nope: modelnet40 has off"):
        prepare("modelnet40", tmp_path, release="nope")


def spoil(root: Path, how: str) -> None:
    """One thing wrong in a text release, in an HDF5 release, or in a list."""
    shape = root / "text" / "03001627" / "aa.txt"
    lists = root / "text" / "train_test_split" / "shuffled_train_file_list.json"
    h5 = root / "h5" / "ply_data_train1.h5"
    rows = shape.read_text().splitlines()
    changes: dict[str, Any] = {
        "no shape": shape.unlink,
        "six columns": lambda: shape.write_text("\n".join(row.rpartition(" ")[0] for row in rows)),
        "a word": lambda: shape.write_text("\n".join([*rows, rows[0].replace(rows[0].split()[0], "x")])),
        "a nan": lambda: shape.write_text("\n".join([*rows, rows[0].replace(rows[0].split()[0], "nan")])),
        "empty": lambda: shape.write_text(""),
        "foreign part": lambda: shape.write_text("\n".join([*rows, rows[0].rpartition(" ")[0] + " 16.0"])),
        "no list": lists.unlink,
        "no json": lambda: lists.write_text("{"),
        "odd json": lambda: lists.write_text("[1, 2]"),
        "odd entry": lambda: lists.write_text('["shape_data/chair/aa"]'),
        "odd synset": lambda: (root / "text" / "synsetoffset2category.txt").write_text("Chair\t123\n"),
        "no h5": h5.unlink,
        "text h5": lambda: h5.write_text("text"),
        "cut h5": lambda: h5.write_bytes(h5.read_bytes()[:700]),
        "no pid": lambda: write_h5(h5, data=np.zeros((1, 50, 3), np.float32), label=np.zeros((1, 1), np.uint8)),
        "2d data": lambda: write_h5(h5, data=np.zeros((50, 3)), label=np.zeros(1, int), pid=np.zeros((50, 3), int)),
        "nan data": lambda: write_h5(
            h5, data=np.full((1, 50, 3), np.nan), label=np.zeros((1, 1), int), pid=np.zeros((1, 50), int)
        ),
        "foreign pid": lambda: write_h5(
            h5, data=np.ones((1, 50, 3)), label=np.zeros((1, 1), int), pid=np.full((1, 50), 9)
        ),
        "label 16": lambda: write_h5(
            h5, data=np.ones((1, 50, 3)), label=np.full((1, 1), 16), pid=np.zeros((1, 50), int)
        ),
    }
    changes[how]()


@pytest.mark.parametrize(
    "release, how, said",
    [
        ("text", "no shape", "lacks 03001627/aa.txt"),
        ("text", "six columns", "line 1 has 6 words, expected lines of 7 numbers"),
        ("text", "a word", "expected lines of 7 numbers"),
        ("text", "a nan", "1 of 61 points have a coordinate that is NaN"),
        ("text", "empty", "holds no points"),
        ("text", "foreign part", "expected 12 to 15 for Chair"),
        ("text", "no list", "lacks train_test_split/shuffled_train_file_list.json"),
        ("text", "no json", "not a JSON list"),
        ("text", "odd json", "not a JSON list"),
        ("text", "odd entry", "is not shape_data/SYNSET/TOKEN"),
        ("text", "odd synset", "none of ShapeNet-Part's categories"),
        ("h5", "no h5", "lacks|some are missing|train2"),
        ("h5", "text h5", "train1.h5: not a readable HDF5 file"),
        ("h5", "cut h5", "train1.h5: not a readable HDF5 file"),
        ("h5", "no pid", "train1.h5: holds no pid"),
        ("h5", "2d data", "expected floats"),
        ("h5", "nan data", "1 of 4 clouds have a coordinate that is NaN"),
        ("h5", "foreign pid", "expected 0 to 3 for Airplane"),
        ("h5", "label 16", "labels 0 to 16, but 16 categories"),
    ],
)
def test_a_damaged_release_is_refused_in_one_line(tmp_path: Path, release: str, how: str, said: str) -> None:
    write_shapenetpart_text(tmp_path / "text", TOKENS)
    write_shapenetpart_hdf5(tmp_path / "h5")
    if how == "no h5":
        (tmp_path / "h5" / "ply_data_train2.h5").write_bytes((tmp_path / "h5" / "ply_data_train0.h5").read_bytes())
    spoil(tmp_path, how)
    with FileSource(tmp_path / release) as source, pytest.raises(ValueError, match=said) as caught:
        found = recognise(source)
        assert found is not None
        found.read(source, "train", dataset="", num_points=50, seed=0)
    assert str(tmp_path / release) in str(caught.value) and "\n" not in str(caught.value)


def test_a_release_may_lie_deeper_in_a_zip(tmp_path: Path) -> None:
    write_modelnet_hdf5(tmp_path / "up" / "modelnet40_ply_hdf5_2048")
    with FileSource(pack(tmp_path / "up", tmp_path / "deep.zip")) as source:
        found = recognise(source)
        assert found is not None
        clouds, _ = found.read(source, "test", num_points=50)
    assert clouds.label.tolist() == [1, 0]
