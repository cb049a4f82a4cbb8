"""The embedded data set as tensors: sampling, clouds, reproducibility and the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared_attn.shapes import (
    CLASS_NAMES,
    CLASS_PART_COUNT,
    CLASS_PART_START,
    create_mesh,
    datasets,
    load_clouds,
    load_images,
    render,
    sample_surface,
)
from shared_attn.shapes.cache import cache_folder
from shared_attn.shapes.draw import create_generator
from shared_attn.shapes.mesh import face_normals

C = len(CLASS_NAMES)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def digest(*tensors: Tensor) -> str:
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def clouds_digest() -> str:
    clouds = load_clouds("train", per_class=2, num_points=256)
    return digest(clouds.points, clouds.normals, clouds.label, clouds.part_label)


# Change VERSION in datasets.py with these, so that nobody's cache serves the data of before.
CLOUDS = "991995873925b3faadb4735aeb6923f7b6fbb463c9655d4d01be6a8cb04de9bb"
IMAGES = "82ea7243cc7cf47674dde6bab9f3aec0c533fbaadf4757654a8197824f00c45f"
ALL_CLOUDS = "64a7fc5a87699b0a61bd7920de7841b6638a88914fdae62109f733daf22959f0"
ALL_IMAGES = "84e58fffa07dc1b6d57b89a1d821a97c02c307ece6440f80e9f6c88cdab425e1"
LARGE_IMAGES = "ad61f5f713a0fd416c966eb170c0923cec095c603e6216ec713fcdc1f8df5d3a"


def test_clouds_are_the_same_everywhere() -> None:
    assert datasets.VERSION == 3
    assert clouds_digest() == CLOUDS


def test_images_are_the_same_everywhere() -> None:
    assert digest(load_images("train", per_class=2).images) == IMAGES
    assert digest(load_images("test", per_class=1, size=64).images) == LARGE_IMAGES


@pytest.mark.slow
def test_the_whole_default_set_is_the_same_everywhere() -> None:
    clouds = load_clouds("train")
    assert digest(clouds.points, clouds.normals, clouds.part_label) == ALL_CLOUDS
    assert digest(load_images("train").images) == ALL_IMAGES


@pytest.mark.usefixtures("_threads_kept")
def test_data_do_not_depend_on_the_number_of_threads() -> None:
    def make(threads: int) -> str:
        torch.set_num_threads(threads)
        meshes = [create_mesh(name, 7) for name in CLASS_NAMES[:4]]
        points, normals, part = sample_surface(meshes[0], 5000, create_generator(0))
        points, normals = (points * 4096).round().to(torch.int16), (normals * 100).round().to(torch.int8)
        return digest(render(meshes, range(4)), points, normals, part)

    assert make(1) == make(2)
    load_clouds("train", per_class=1, num_points=8)
    assert torch.get_num_threads() == 2


def test_clouds_have_the_documented_layout() -> None:
    clouds = load_clouds("test", per_class=3, num_points=300, seed=4)
    N = 3 * C
    assert clouds.points.shape == clouds.normals.shape == (N, 300, 3)
    assert [clouds.points.dtype, clouds.normals.dtype] == [torch.int16, torch.int8]
    assert [clouds.label.dtype, clouds.part_label.dtype] == [torch.uint8, torch.uint8]
    assert clouds.label.tolist() == 3 * list(range(C))
    assert clouds.name[C + 1] == f"{CLASS_NAMES[1]}_test_0001"
    points = clouds.points.double() / 4096
    radius = points.norm(dim=2)
    assert radius.max() <= 1
    assert radius.amax(1).min() > 0.999
    assert points.mean(1).abs().max() < 1e-3
    assert ((clouds.normals.double() / 127).norm(dim=2) - 1).abs().max() < 0.02
    start = torch.tensor(CLASS_PART_START)[clouds.label.long(), None]
    count = torch.tensor(CLASS_PART_COUNT)[clouds.label.long(), None]
    part = clouds.part_label.long() - start
    assert (part >= 0).all()
    assert (part < count).all()
    assert all(len(row.unique()) >= 2 for row in part)


def test_more_items_only_add_to_fewer() -> None:
    few, many = (load_clouds("train", per_class=count, num_points=64) for count in (2, 3))
    assert torch.equal(many.points[: 2 * C], few.points)
    assert torch.equal(many.part_label[: 2 * C], few.part_label)
    assert many.name[: 2 * C] == few.name
    one, two = (load_images("train", per_class=count, size=16).images for count in (1, 2))
    assert torch.equal(two[:C], one)


def test_splits_and_seeds_share_no_shape() -> None:
    seeds = {
        (split, seed): {datasets.mesh_seed(split, name, i, seed) for name in CLASS_NAMES for i in range(200)}
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert len(set().union(*seeds.values())) == 4 * 200 * C
    assert {number % 2 for number in seeds["train", 0]} == {0}
    assert {number % 2 for number in seeds["test", 0]} == {1}
    train = load_clouds("train", per_class=1, num_points=64)
    test = load_clouds("test", per_class=1, num_points=64)
    other = load_clouds("train", per_class=1, num_points=64, seed=1)
    for i in range(C):
        assert not torch.equal(train.points[i], test.points[i])
        assert not torch.equal(train.points[i], other.points[i])


def test_images_have_the_documented_layout() -> None:
    images = load_images("test", per_class=2, size=24)
    assert images.images.shape == (2 * C, 3, 24, 24)
    assert images.images.dtype == images.label.dtype == torch.uint8
    assert images.label.tolist() == 2 * list(range(C))


def test_sampling_follows_the_area_and_stays_on_the_surface() -> None:
    mesh = create_mesh("chair", 1)
    points, normals, part = sample_surface(mesh, 20000, create_generator(0))
    area = face_normals(mesh.vertices, mesh.faces).norm(dim=1)
    share = torch.bincount(mesh.part, area) / area.sum()
    drawn = torch.bincount(part, minlength=len(share)) / 20000
    assert (share - drawn).abs().max() < 0.02
    corners = mesh.vertices[mesh.faces]
    unit = face_normals(mesh.vertices, mesh.faces) / area[:, None]
    for i in range(0, 20000, 1000):  # each point lies in a face with its normal and its part
        offset = ((points[i] - corners[:, 0]) * unit).sum(1).abs()
        inside = torch.stack(
            [
                (torch.linalg.cross(corners[:, (k + 1) % 3] - corners[:, k], points[i] - corners[:, k]) * unit).sum(1)
                for k in range(3)
            ]
        ).amin(0)
        on = (offset < 1e-9) & (inside > -1e-9) & (mesh.part == part[i])
        assert (on & ((unit - normals[i]).abs().amax(1) < 1e-9)).any()


def test_data_come_from_the_cache_the_second_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_clouds("train", per_class=1, num_points=32)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(datasets, "create_mesh", None)
    second = load_clouds("train", per_class=1, num_points=32)
    assert torch.equal(first.points, second.points)
    assert torch.equal(first.normals, second.normals)
    with pytest.raises(TypeError):  # another setting is another file, and must be made
        load_clouds("train", per_class=1, num_points=33)


@pytest.mark.parametrize("harm", ["empty", "truncated", "flipped", "other"])
def test_a_spoilt_cache_file_is_made_anew(folder: Path, harm: str) -> None:
    good = load_images("train", per_class=1, size=8)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    if harm == "other":
        torch.save({"images": torch.zeros(1)}, path)
    else:
        middle = content.index(good.images.numpy().tobytes()) + 5
        spoilt = {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        }[harm]
        path.write_bytes(spoilt)
    assert torch.equal(load_images("train", per_class=1, size=8).images, good.images)
    assert torch.equal(load_images("train", per_class=1, size=8).images, good.images)
    assert list(folder.iterdir()) == [path]  # no temporary file stays behind


def test_an_unwritable_cache_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "file" / "cache"))
    assert load_images("train", per_class=1, size=8).images.shape == (C, 3, 8, 8)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EAGAN_EAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "eagan-eat" / "shapes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "eagan-eat" / "shapes"


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_clouds("val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        load_images("train", per_class=0)
    with pytest.raises(ValueError, match="num_points must be at least 1, got -5"):
        load_clouds("test", num_points=-5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        load_clouds("test", seed=-1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        sample_surface(create_mesh("mug", 0), 0, create_generator(0))
