"""torch_geometric's data sets and batches: read as clouds, trained on, and given to the networks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from release_files import UPRIGHT, write_mesh, write_shapenetpart_text
from torch_geometric import transforms
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import ModelNet, ShapeNet
from torch_geometric.loader import DataLoader

from pointcloud.classifier import PointClassifier
from pointcloud.datasets import load_split
from pointcloud.graph_batches import count_points
from pointcloud.graphs import MODELNET_NAMES, clouds_from_graphs
from pointcloud.measurement import measure
from pointcloud.presets import PRESETS
from pointcloud.segmenter import PartSegmenter
from pointcloud.training import train

SMALL: dict[str, Any] = {
    "embed_channels": (8, 8),
    "neighbour_channels": (16,),
    "num_centres": (16,),
    "num_neighbours": 4,
    "stem_layers": 1,
    "num_layers": 2,
    "fuse_channels": 16,
}


def cloud(seed: int, count: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(UPRIGHT).float()


@pytest.fixture(scope="module")
def modelnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("modelnet")
    for number, category in enumerate(MODELNET_NAMES["10"].split()):
        for split, count in (("train", 2), ("test", 1)):
            for mesh in range(count):
                path = root / "raw" / category / split / f"{category}_{mesh:04d}.off"
                write_mesh(path, 2.0 + number + 20 * (split == "test") + mesh)
    return root


def test_modelnet_objects_become_the_clouds_of_their_meshes(modelnet: Path) -> None:
    dataset = ModelNet(str(modelnet), "10", train=True)
    clouds = load_split(dataset, "", "train")
    assert clouds.class_names == MODELNET_NAMES["10"].split() and clouds.source["name"] == "modelnet10"
    assert clouds.label.tolist() == [data.y.item() for data in dataset] and clouds.points.shape == (20, 2048, 3)
    points = clouds.points.double() * clouds.unit
    torch.testing.assert_close(points.norm(dim=-1).amax(1), torch.ones(20).double(), rtol=0, atol=2e-3)
    for item, data in zip(points, dataset, strict=True):  # proportions of the mesh: x against z, which is up
        size = data.pos.amax(0) - data.pos.amin(0)
        extent = item.amax(0) - item.amin(0)
        assert float(extent[0] / extent[2]) == pytest.approx(float(size[0] / size[2]), rel=0.05)
    assert torch.equal(clouds.points, clouds_from_graphs(list(dataset), class_names=clouds.class_names).points)
    some = torch.utils.data.Subset(dataset, [3, 0])
    assert clouds_from_graphs(some).class_names == clouds.class_names
    assert clouds_from_graphs(some).label.tolist() == clouds.label[[3, 0]].tolist()
    assert clouds_from_graphs(dataset[4:6]).label.tolist() == clouds.label[4:6].tolist()


def test_random_transforms_are_drawn_from_the_seed_alone(modelnet: Path) -> None:
    transform = transforms.Compose([transforms.SamplePoints(100), transforms.RandomScale((0.5, 1)), NumpyJitter()])
    dataset = ModelNet(str(modelnet), "10", train=False, transform=transform)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    first = clouds_from_graphs(dataset, num_points=64)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert np.array_equal(np.random.get_state()[1], state[2])
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    assert torch.equal(first.points, clouds_from_graphs(dataset, num_points=64).points)
    assert not torch.equal(first.points, clouds_from_graphs(dataset, num_points=64, seed=1).points)


class NumpyJitter:
    def __call__(self, data: Data) -> Data:
        data.pos = data.pos + torch.from_numpy(np.random.normal(size=data.pos.shape)).float()
        return data


def test_shapenet_objects_agree_with_the_release_they_were_made_from(tmp_path: Path) -> None:
    tokens = {
        "train": [("03001627", "aa"), ("02691156", "bb")],
        "val": [("04379243", "cc")],
        "test": [("03001627", "ff")],
    }
    write_shapenetpart_text(tmp_path / "raw", tokens)
    for category in ShapeNet.category_ids.values():
        (tmp_path / "raw" / category).mkdir(exist_ok=True)
    direct = load_split(str(tmp_path / "raw"), "", "train")
    clouds = clouds_from_graphs(ShapeNet(str(tmp_path), split="trainval"))
    assert clouds.label.tolist() == direct.label.tolist() == [4, 0, 15]
    assert clouds.part_names == direct.part_names and clouds.part_start == direct.part_start
    assert clouds.part_label is not None and direct.part_label is not None
    for mine, theirs, my_parts, their_parts in zip(
        clouds.points, direct.points, clouds.part_label, direct.part_label, strict=True
    ):
        # The same 60 points in another order, so normalised around almost the same centroid.
        order, other = (points.float() @ torch.tensor([1.0, 1e-3, 1e-6]) for points in (mine, theirs))
        assert (mine[order.argsort()] - theirs[other.argsort()]).abs().float().quantile(0.9) < 40
        assert my_parts.bincount().sub(their_parts.bincount()).abs().max() < 40
    only = clouds_from_graphs(ShapeNet(str(tmp_path), categories=["Table", "Chair"], split="trainval"))
    assert only.label.tolist() == [4, 15] and len(only.class_names) == 16


def test_lists_of_data_with_names_of_their_own() -> None:
    items = [
        Data(pos=cloud(i, 30 + i), y=torch.arange(30 + i) % 2 + 2 * (i % 2), category=torch.tensor([i % 2]))
        for i in range(4)
    ]
    clouds = clouds_from_graphs(items, parts={"cup": ["bowl", "stem"], "hat": ["rim", "top"]}, num_points=30)
    assert clouds.class_names == ["cup", "hat"] and clouds.part_names[2:] == ["hat/rim", "hat/top"]
    assert (clouds.part_start, clouds.part_count, clouds.label.tolist()) == ([0, 2], [2, 2], [0, 1, 0, 1])
    assert clouds.part_label is not None and clouds.part_label.shape == (4, 30)
    plain = [Data(pos=cloud(i), y=torch.tensor(i)) for i in range(3)]
    assert clouds_from_graphs(plain).class_names == ["class 0", "class 1", "class 2"]
    upright = clouds_from_graphs(plain, up="y").points
    extent = (upright.amax(1) - upright.amin(1)).float()
    assert (extent.argmax(1) == 2).all()  # the clouds are tallest along y


@pytest.mark.parametrize(
    "items, said",
    [
        ([], "expected a data set or a list"),
        ([Data(y=torch.tensor([0]))], r"data\[0\]: expected pos"),
        ([Data(pos=torch.zeros(0, 3), y=torch.tensor([0]))], "expected pos"),
        ([Data(pos=cloud(0))], "expected y with one integer"),
        ([Data(pos=cloud(0), y=torch.zeros(7, dtype=torch.long))], "expected y with one integer"),
        ([Data(pos=cloud(0), y=torch.tensor([0.5]))], "expected y with one integer"),
        ([Data(pos=cloud(0) / 0, y=torch.tensor([0]))], r"data\[0\]: .* points have a coordinate that is NaN"),
        ([Data(pos=cloud(0), y=torch.zeros(40, dtype=torch.long))], "parts need pos without face"),
        ([Data(pos=cloud(0), y=torch.tensor([0]), face=torch.full((3, 1), 99))], "its faces name points 99 to 99"),
        ([Data(pos=cloud(0), y=torch.full((40,), 9), category=0)], "part ids 9 to 9, expected 0 to 3 for Airplane"),
        ([Data(pos=cloud(0), y=torch.full((40,), 0), category=16)], "category is 16, expected 0 to 15"),
        (
            [Data(pos=cloud(0), y=torch.tensor([0])), Data(pos=cloud(0), y=torch.zeros(40, dtype=int), category=0)],
            r"data\[1\]: has part ids, the others have not",
        ),
    ],
)
def test_unfit_data_are_refused_in_one_line(items: list[Data], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        clouds_from_graphs(items)
    assert "\n" not in str(caught.value)


def classifier(**keywords: Any) -> PointClassifier:
    return PointClassifier(5, head_channels=(16,), **{**SMALL, **keywords})


def test_a_batch_of_one_size_is_the_tensor() -> None:
    clouds = torch.stack([cloud(i) for i in range(6)])
    batch = Batch.from_data_list([Data(pos=points) for points in clouds])
    network = classifier(dropout=0.0)
    for training in (True, False):
        network.train(training)
        assert torch.equal(network(batch), network(clouds))
    assert torch.equal(network.eval()(Data(pos=clouds[2])), network(clouds[2:3]))
    bare = Data(pos=clouds.flatten(0, 1), batch=torch.arange(6).repeat_interleave(40))
    assert torch.equal(network(bare), network(clouds))


@pytest.mark.parametrize("attention", ["external", "offset", "hilo"])
def test_clouds_of_different_sizes_get_what_each_gets_alone(attention: str) -> None:
    items = [Data(pos=cloud(i, count)) for i, count in enumerate((40, 25, 40, 90, 25))]
    network = classifier(attention=attention).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                assert layer.running_mean is not None
                layer.running_mean.normal_(0, 0.1)
        together = network(Batch.from_data_list(items))
        alone = torch.cat([network(item.pos.unsqueeze(0)) for item in items])
        turned = network(Batch.from_data_list(items[::-1]))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, turned.flip(0), rtol=1e-5, atol=1e-6)
    assert alone.std(0).min() > 1e-4  # the clouds do differ
    with pytest.raises(ValueError, match="25 to 90 points in one training step"):
        network.train()(Batch.from_data_list(items))


@pytest.mark.parametrize("counts", [(40, 40, 40), (40, 25, 40)])
def test_a_segmenter_labels_the_points_of_a_batch_where_they_are(counts: tuple[int, ...]) -> None:
    items = [Data(pos=cloud(i, count), category=i) for i, count in enumerate(counts)]
    keywords = {**SMALL, "neighbour_channels": (), "num_centres": ()}
    network = PartSegmenter(7, 3, head_channels=(16, 16), **keywords).eval()
    batch = next(iter(DataLoader(items, batch_size=3)))
    with torch.no_grad():
        found = network(batch)
        alone = [network(item.pos.unsqueeze(0), torch.tensor([i]))[0] for i, item in enumerate(items)]
        swapped = network(batch, torch.tensor([2, 1, 0]))
    assert found.shape == (sum(counts), 7)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert (swapped[:40] - found[:40]).abs().max() > 1e-4  # a category that is given comes first
    del batch.category
    with pytest.raises(TypeError, match="categories are given exactly when"):
        network(batch)
    with pytest.raises(ValueError, match="category has 2 numbers, expected one for each of 3 clouds"):
        network(batch, torch.tensor([0, 1]))


def test_what_is_no_batch_of_clouds_is_refused() -> None:
    for wrong, said in (
        (Data(x=torch.zeros(4, 3)), "expected a tensor"),
        (np.zeros((2, 5, 3)), "expected a tensor"),
        (Data(pos=torch.zeros(4, 2)), "expected a tensor"),
        (Data(pos=torch.zeros(4, 3), batch=torch.tensor([0, 1, 0, 1])), "batch is not in order"),
        (Data(pos=torch.zeros(4, 3), batch=torch.tensor([0, 0, 2, 2])), "expected at least one point each"),
    ):
        with pytest.raises(ValueError, match=said):
            count_points(wrong)  # type: ignore[arg-type]


def test_training_and_evaluation_take_torch_geometric_data(modelnet: Path, tmp_path: Path) -> None:
    given = [ModelNet(str(modelnet), "10", train=split) for split in (True, False)]
    config = replace(
        PRESETS["eat-shapes-small"],
        out=tmp_path / "run",
        epochs=1,
        batch_size=4,
        num_points=64,
        precision="fp32",
        device="cpu",
        validation=0.0,
        norm_clouds=8,
        warmup_epochs=0.0,
        num_centres=(32, 16),
        num_neighbours=4,
    )
    metrics = train(config, train_data=given[0], test_data=given[1])
    result = measure(str(tmp_path / "run"), given[1], device="cpu").result
    assert result["clouds"] == 10 and result["data"] == "modelnet10"
    assert result["metrics"]["overall_accuracy"] == pytest.approx(metrics["overall_accuracy"])
    with pytest.raises(ValueError, match="expected both or neither"):
        train(config, train_data=given[0])
