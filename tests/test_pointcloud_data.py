"""Stored clouds, where they come from, and what augmentation makes of them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointcloud.augmentation import Augmentation, draw_clouds, read_clouds
from pointcloud.clouds import CloudSet, normalise, quantise, read_clouds_file
from pointcloud.datasets import load_split, split_validation
from pointcloud.draws import normal, uniform
from pointcloud.releases.preparation import prepare
from pointcloud.steps import items_at

EVERYTHING = Augmentation(24, 0.5, 180.0, 30.0, (2 / 3, 3 / 2), 0.2, 0.01)
UNIT = 1 / 4096


def draw(stored: torch.Tensor, items: list[int], epoch: int, options: Augmentation = EVERYTHING, seed: int = 0) -> Any:
    index = torch.tensor(items)
    return draw_clouds(stored, index, torch.full_like(index, epoch), unit=UNIT, seed=seed, options=options)


@pytest.fixture
def stored() -> torch.Tensor:
    return (torch.randn(6, 40, 3).clamp(-3, 3) * 1000).to(torch.int16)


def arrays(**changes: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    good = {
        "points": generator.integers(-4000, 4000, (20, 8, 3)).astype(np.int16),
        "label": (np.arange(20) % 2).astype(np.uint8),
        "name": np.array([f"s{i}" for i in range(20)]),
        "class_names": np.array(["cat", "dog"]),
        "scale": np.float32(UNIT),
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


PARTS = {
    "part_label": (np.arange(20) % 2 * 2)[:, None].repeat(8, 1).astype(np.uint8),
    "part_names": np.array(["cat/head", "cat/tail", "dog/head"]),
    "class_part_start": np.array([0, 2], dtype=np.uint8),
    "class_part_count": np.array([2, 1], dtype=np.uint8),
}


def test_draws_follow_from_the_item_alone_and_are_uniform() -> None:
    items = torch.arange(2000)
    epochs = torch.zeros_like(items)
    u = uniform(items, epochs, 16, 0, "a")
    assert torch.equal(u[[5, 77]], uniform(torch.tensor([5, 77]), torch.zeros(2, dtype=torch.long), 16, 0, "a"))
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.002
    counts = torch.histc(u, 20, 0, 1)
    assert counts.min() > 0.9 * u.numel() / 20
    for other in (
        uniform(items, epochs + 1, 16, 0, "a"),
        uniform(items, epochs, 16, 1, "a"),
        uniform(items, epochs, 16, 0, "b"),
    ):
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < 0.03
    correlation = torch.corrcoef(u.T) - torch.eye(16)
    assert correlation.abs().max() < 0.1
    g = normal(items, epochs, 16, 0, "a")
    assert abs(float(g.mean())) < 0.02 and abs(float(g.std()) - 1) < 0.02


def test_augmentation_never_writes_into_the_stored_array(stored: torch.Tensor) -> None:
    """PCT_Pytorch's does, through a view: after five epochs clouds kept a few distinct points."""
    before = stored.clone()
    for epoch in range(5):
        points, _ = draw(stored, [0, 1, 2, 3, 4, 5], epoch)
        points.zero_()
        read_clouds(stored, torch.arange(6), None, 1.0).zero_()
    assert torch.equal(stored, before)


def test_augmentation_does_not_depend_on_batch_or_order(stored: torch.Tensor) -> None:
    together, index = draw(stored, [0, 1, 2, 3], epoch=7)
    alone, its_index = draw(stored, [2], epoch=7)
    assert torch.equal(index[2], its_index[0])
    torch.testing.assert_close(together[2], alone[0], rtol=0, atol=1e-6)
    assert (together - draw(stored, [0, 1, 2, 3], epoch=8)[0]).abs().max() > 0.01
    assert (together - draw(stored, [0, 1, 2, 3], epoch=7, seed=1)[0]).abs().max() > 0.01


def test_without_options_points_are_a_random_subset_without_repetition(stored: torch.Tensor) -> None:
    points, index = draw(stored, [3], 0, Augmentation(24))
    assert len(index[0].unique()) == 24
    torch.testing.assert_close(points[0], stored[3, index[0]].float() * UNIT)
    everything, _ = draw(stored, [3], 0, Augmentation(1000))
    assert everything.shape == (1, 40, 3)
    assert torch.equal(everything[0].sort(0).values, (stored[3].float() * UNIT).sort(0).values)


def test_rotation_keeps_height_and_lengths_and_tilt_keeps_lengths(stored: torch.Tensor) -> None:
    for options, same in ((Augmentation(40, rotation=180.0), [2]), (Augmentation(40, tilt=180.0), [])):
        points, index = draw(stored, [1, 4], 0, options)
        plain = read_clouds(stored, torch.tensor([1, 4]), index, UNIT)
        torch.testing.assert_close(points.norm(dim=-1), plain.norm(dim=-1))
        torch.testing.assert_close(points[..., same], plain[..., same])
        assert (points - plain).abs().amax((1, 2)).min() > 0.05
        product = torch.linalg.lstsq(plain[0], points[0]).solution
        assert torch.det(product) == pytest.approx(1, abs=1e-3)  # a turn, no mirror


def test_scale_shift_and_jitter_stay_in_their_ranges(stored: torch.Tensor) -> None:
    items = [0] * 6
    plain = stored[:1].float() * UNIT
    for epoch in range(4):
        points, index = draw(stored, items, epoch, Augmentation(40, scale=(0.5, 2.0)))
        ratio = points[0] / plain[0, index[0]]
        assert ratio.nanmedian(0).values.min() >= 0.5 and ratio.nanmedian(0).values.max() <= 2
        points, index = draw(stored, items, epoch, Augmentation(40, shift=0.2))
        moved = points[0] - plain[0, index[0]]
        assert moved.std(0).max() < 1e-6 and 0 < moved.abs().max() <= 0.2
        points, index = draw(stored, items, epoch, Augmentation(40, jitter=0.01))
        noise = points[0] - plain[0, index[0]]
        assert noise.abs().max() <= 0.05 and 0.005 < noise.std() < 0.015


def test_point_dropout_repeats_the_first_point_and_its_label_follows(stored: torch.Tensor) -> None:
    points, index = draw(stored, [0, 1, 2, 3, 4, 5], 0, Augmentation(40, point_dropout=0.99))
    repeated = (index[:, 1:] == index[:, :1]).float().mean(1)
    assert repeated.max() > 0.5 and repeated.min() < repeated.max()
    plain = read_clouds(stored, torch.arange(6), index, UNIT)
    assert torch.equal(points, plain)


def test_every_epoch_shows_every_cloud_once_whatever_the_batch_size() -> None:
    def sequence(batch: int) -> list[tuple[int, int]]:
        pairs = []
        for shown in range(0, 60, batch):
            items, epochs = items_at(shown, batch, 20, seed=3)
            pairs += list(zip(items.tolist(), epochs.tolist(), strict=True))
        return pairs

    assert sequence(4) == sequence(12) == sequence(60)
    for epoch in range(3):
        assert sorted(item for item, e in sequence(4) if e == epoch) == list(range(20))


def test_npz_layout_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "pets_8_train.npz", **arrays(**PARTS))
    clouds = read_clouds_file(tmp_path / "pets_8_train.npz")
    assert (len(clouds), clouds.class_names, clouds.unit) == (20, ["cat", "dog"], pytest.approx(UNIT))
    assert clouds.points.dtype == torch.int16 and clouds.part_start == [0, 2] and clouds.part_count == [2, 1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"points": None}, "lacks points"),
        ({"points": np.zeros((20, 8, 3), np.float32)}, "expected int16"),
        ({"points": np.zeros((20, 8, 2), np.int16)}, "expected int16"),
        ({"points": np.zeros((0, 8, 3), np.int16), "label": np.zeros(0, np.uint8)}, "expected int16"),
        ({"label": np.zeros(19, np.uint8)}, "one integer for each of 20 shapes"),
        ({"label": np.full(20, 2, np.uint8)}, "expected 0 to 1"),
        ({"label": np.full(20, -1, np.int8)}, "expected 0 to 1"),
        ({"class_names": np.array([1, 2])}, "list of names"),
        ({"scale": np.float32(0)}, "positive number"),
        ({"scale": np.float32("nan")}, "positive number"),
        ({**PARTS, "part_names": None}, "lacks part_names"),
        ({**PARTS, "part_label": np.full((20, 8), 1, np.uint8)}, "outside the range"),
        ({**PARTS, "part_label": np.zeros((20, 7), np.uint8)}, "integer for each point"),
        ({**PARTS, "class_part_count": np.array([2], np.uint8)}, "one integer for each class"),
    ],
)
def test_wrong_npz_files_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError, match=said) as caught:
        read_clouds_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_pickle_is_loaded_and_no_damaged_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", **arrays(class_names=np.array(["cat", {"a": 1}], dtype=object)))
    (tmp_path / "text.npz").write_text("not a zip")
    whole = io.BytesIO()
    np.savez(whole, **arrays())
    (tmp_path / "cut.npz").write_bytes(whole.getvalue()[:500])
    for name in ("objects", "text", "cut"):
        with pytest.raises(ValueError, match=f"{name}.npz: not a readable"):
            read_clouds_file(tmp_path / f"{name}.npz")


def test_where_data_are_looked_for(tmp_path: Path) -> None:
    for name, change in (("pets_8_train", 0), ("pets_8_test", 1), ("cars_8_train", 2), ("cars_8_test", 3)):
        points = arrays()["points"].copy()
        points[0, 0, 0] = change
        np.savez(tmp_path / f"{name}.npz", **arrays(points=points))

    def first(data: Path, dataset: str, split: Any) -> int:
        return int(load_split(str(data), dataset, split).points[0, 0, 0])

    assert [first(tmp_path, "pets", "train"), first(tmp_path, "pets", "test")] == [0, 1]
    assert [
        first(tmp_path / "cars_8_train.npz", "pets", "train"),
        first(tmp_path / "cars_8_train.npz", "", "test"),
    ] == [2, 3]
    assert first(tmp_path / "cars_8_test.npz", "", "train") == 2
    for dataset, said in (("", "several data sets"), ("shapes", "several data sets"), ("fish", "holds neither fish")):
        with pytest.raises(ValueError, match=said):
            load_split(str(tmp_path), dataset, "train")
    (tmp_path / "cars_8_test.npz").unlink()
    with pytest.raises(FileNotFoundError, match="is not beside it"):
        load_split(str(tmp_path / "cars_8_train.npz"), "", "test")
    with pytest.raises(FileNotFoundError, match="--data .*nowhere"):
        load_split(str(tmp_path / "nowhere"), "", "train")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(ValueError, match="expected a folder"):
        load_split(str(tmp_path / "a.csv"), "", "train")


def test_one_file_alone_is_cut_into_disjoint_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays())
    train, test = (load_split(str(tmp_path / "own.npz"), "", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    rows = {tuple(cloud.flatten().tolist()) for cloud in train.points} & {
        tuple(c.flatten().tolist()) for c in test.points
    }
    assert rows == set() and test.label.bincount().tolist() == [2, 2]


def test_validation_is_a_stratified_part_of_the_training_clouds() -> None:
    points = torch.arange(100, dtype=torch.int16).view(100, 1, 1).expand(-1, 2, 3)
    clouds = CloudSet(points, torch.arange(100) % 5, list("abcde"))
    train, validation = split_validation(clouds, 0.1, seed=0)
    assert validation is not None and validation.label.bincount().tolist() == [2] * 5
    seen = train.points[:, 0, 0].tolist() + validation.points[:, 0, 0].tolist()
    assert sorted(seen) == list(range(100))
    assert split_validation(clouds, 0.0, seed=0)[1] is None


def test_shapes_are_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointcloud.datasets.SHAPES_PER_CLASS", {"train": 2, "test": 1})
    train, test = load_split("shapes", "shapes", "train"), load_split("shapes", "shapes", "test")
    assert train.class_names == test.class_names and len(train) == 2 * len(test)
    assert train.part_label is not None and int(train.part_label.max()) < len(train.part_names)
    assert not torch.equal(train.points[: len(test)], test.points)


def write_meshes(root: Path) -> None:
    """Two classes of OFF boxes, one header glued to its counts."""
    faces = "3 0 1 2\n3 0 2 3\n3 4 5 6\n3 4 6 7\n3 0 1 5\n3 0 5 4\n"
    for category, height in (("flat", 1), ("tall", 9)):
        for split, count in (("train", 3), ("test", 2)):
            folder = root / category / split
            folder.mkdir(parents=True)
            for i in range(count):
                corners = [(0, 0), (4 + i, 0), (4 + i, 4), (0, 4)]
                vertices = "".join(f"{x} {y} {z}\n" for z in (0, height) for x, y in corners)
                header = "OFF8 6 0\n" if i == 1 else "OFF\n8 6 0\n"
                (folder / f"{category}_{i}.off").write_text(header + vertices + faces)


def test_folders_of_meshes_are_sampled_and_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw OFF files are not in the unit sphere; the clouds made of them are."""
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    write_meshes(tmp_path / "mine")
    clouds = load_split(str(tmp_path / "mine"), "", "train")
    assert clouds.class_names == ["flat", "tall"] and clouds.label.tolist() == [0, 0, 0, 1, 1, 1]
    points = clouds.points.float() * clouds.unit
    torch.testing.assert_close(points.norm(dim=-1).amax(1), torch.ones(6), rtol=0, atol=2e-3)
    assert points.mean(1).abs().max() < 1e-3
    extent = points.amax(1) - points.amin(1)
    assert (extent[:3, 2] < extent[:3, 0]).all() and (extent[3:, 2] > extent[3:, 0]).all()
    assert torch.equal(clouds.points, load_split(str(tmp_path / "mine"), "", "train").points)
    assert list((tmp_path / "cache").glob("release-mine-train*"))


@pytest.mark.parametrize("packed", [False, True])
def test_modelnet_is_converted_from_folder_or_zip(tmp_path: Path, packed: bool) -> None:
    write_meshes(tmp_path / "ModelNet10")
    if packed:
        with zipfile.ZipFile(tmp_path / "ModelNet10.zip", "w") as archive:
            for path in (tmp_path / "ModelNet10").rglob("*.off"):
                archive.write(path, path.relative_to(tmp_path))
        (tmp_path / "ModelNet10").rename(tmp_path / "elsewhere")
    files = prepare("modelnet10", tmp_path, num_points=64)
    assert [file.name for file in files] == ["modelnet10_64_train.npz", "modelnet10_64_test.npz"]
    train, test = (load_split(str(tmp_path), "modelnet10", split) for split in ("train", "test"))
    assert (len(train), len(test), train.class_names) == (6, 4, ["flat", "tall"])


def test_downloads_are_checked_and_a_dead_link_says_what_to_do(tmp_path: Path) -> None:
    write_meshes(tmp_path / "source" / "ModelNet10")
    archive = tmp_path / "source" / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "source" / "ModelNet10").rglob("*.off"):
            file.write(path, path.relative_to(tmp_path / "source"))
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="could not be downloaded .*put ModelNet10.zip, or its unpacked folder ModelNet10"
    ):
        prepare("modelnet10", out, url=f"{archive.as_uri()}.missing")
    with pytest.raises(ValueError, match="its SHA-256 is .* expected 00"):
        prepare("modelnet10", out, url=archive.as_uri(), sha256="00")
    assert list(out.iterdir()) == []
    assert len(prepare("modelnet10", out, num_points=16, url=archive.as_uri())) == 2


def test_normalise_and_quantise() -> None:
    points = np.random.default_rng(0).normal(size=(100, 3)) * 50 + 7
    unit = normalise(points)
    assert np.abs(unit.mean(0)).max() < 1e-12 and np.linalg.norm(unit, axis=1).max() == pytest.approx(1)
    assert np.abs(quantise(unit) * UNIT - unit).max() <= UNIT / 2 + 1e-9
    assert np.array_equal(normalise(np.full((4, 3), 2.0)), np.zeros((4, 3)))


def test_real_data_are_what_their_description_says(shared_data: Path) -> None:
    train, test = (load_split(str(shared_data), "modelnet40", split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names)) == (9843, 2468, 40)
    parts = load_split(str(shared_data), "lpsb", "test")
    assert (len(parts), len(parts.part_names)) == (95, 94)
    with pytest.raises(ValueError, match="lpsb, modelnet40"):
        load_split(str(shared_data), "", "train")
