"""Mistakes that point-cloud code is known for (specs/eat.md, section 6), each with a test that would catch it.

Tested elsewhere: the test split never chooses and is read once, interrupted runs (test_pointcloud_training); farthest
points of duplicate and collinear points, k > N (test_pointcloud_geometry); counts over all and not over batches
(test_pointcloud_metrics); augmentation and the stored array, meshes that are not in the unit sphere
(test_pointcloud_data); glued OFF headers, which way is up (test_pointcloud_files).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointcloud.augmentation import Augmentation, draw_clouds
from pointcloud.classifier import PointClassifier
from pointcloud.clouds import CloudSet
from pointcloud.corruptions import CORRUPTIONS, corrupt
from pointcloud.draws import uniform
from pointcloud.evaluation import evaluate_classifier, evaluate_segmenter, group_size, predict_logits
from pointcloud.geometry import farthest_points
from pointcloud.mixing import mix_clouds
from pointcloud.presets import Config
from pointcloud.segmenter import PartSegmenter

UNIT = 1 / 4096
NETWORK: dict[str, Any] = {
    "attention": "external", "embed_channels": (8, 16), "neighbour_channels": (24, 32), "num_centres": (32, 16),
    "num_neighbours": 8, "num_layers": 2, "fuse_channels": 48,
}  # fmt: skip


def random_clouds(count: int, num_points: int, *, parts: bool = False) -> CloudSet:
    points = (torch.randn(count, num_points, 3).clamp(-3, 3) * 1000).to(torch.int16)
    label = torch.arange(count) % 3
    if not parts:
        return CloudSet(points, label, ["a", "b", "c"], UNIT)
    part_label = (2 * label.unsqueeze(1) + torch.randint(2, (count, num_points))).to(torch.uint8)
    names = [f"{owner}/{part}" for owner in "abc" for part in "12"]
    return CloudSet(points, label, ["a", "b", "c"], UNIT, part_label, names, [0, 2, 4], [2, 2, 2])


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(2)
    model = PointClassifier(3, head_channels=(16,), **NETWORK)
    for _ in range(3):
        model.train()(torch.randn(8, 100, 3))  # norms with statistics of their own
    return model.eval()


def all_logits(model: nn.Module, clouds: CloudSet, num_points: int, **keywords: Any) -> Tensor:
    return torch.cat([logits for _, logits in predict_logits(model, clouds, num_points, **keywords)])


def test_neither_training_nor_measuring_writes_into_the_stored_clouds(classifier: nn.Module) -> None:
    """Trap 1. Results are new tensors: writing into them changes nothing that is stored."""
    clouds = random_clouds(12, 40)
    before, index = clouds.points.clone(), torch.arange(12)
    options = Augmentation(40)  # nothing is done to the points: the likeliest way to get a view of them
    for epoch in range(3):
        epochs = torch.full_like(index, epoch)
        points, _ = draw_clouds(clouds.points, index, epochs, unit=1.0, seed=0, options=options)
        for point_mix in ("cutmix_k", "cutmix_r", "rsmix"):
            kept = points.clone()
            (mixed,), _ = mix_clouds(Config(point_mix=point_mix), clouds, points, index, epochs, options)  # type: ignore[arg-type]
            assert torch.equal(points, kept)
            mixed.zero_()
            points, _ = draw_clouds(clouds.points, index, epochs, unit=1.0, seed=0, options=options)
        points.zero_()

    def destroy(points: Tensor, items: Tensor) -> Tensor:
        result = corrupt(points, items, "jitter", 5)
        points.zero_()
        return result

    for _ in predict_logits(classifier, clouds, 40, change=destroy):
        pass
    assert torch.equal(clouds.points, before)


class Scripted(nn.Module):
    """Says class 1 for clouds it has seen before, class 0 at first sight."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, points: Tensor) -> Tensor:
        self.calls += 1
        logits = torch.tensor([2.0, 0.0, -1.0]) if self.calls % 3 == 1 else torch.tensor([0.0, 1.5, -1.0])
        return logits.expand(len(points), 3)


def test_votes_are_one_average_and_not_the_best_of_many() -> None:
    """Trap 2. Three views of each cloud: the mean of their softmax decides, and the metric says how many they were."""
    clouds = random_clouds(7, 20)
    views = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.5, -1.0], [0.0, 1.5, -1.0]]).double().softmax(-1)
    found = all_logits(Scripted(), clouds, 20, votes=3)
    torch.testing.assert_close(found.double(), views.mean(0).log().expand(7, 3), rtol=0, atol=1e-6)
    model = Scripted()
    metrics, confusion = evaluate_classifier(model, clouds, 20, votes=3)
    assert model.calls == 3  # each view once, no repeats to choose from
    winner = int(views.mean(0).argmax())
    assert metrics["overall_accuracy_vote3"] == float((clouds.label == winner).double().mean())
    assert int(confusion[:, winner].sum()) == 7


def test_nothing_at_test_time_is_drawn_from_the_global_generator(classifier: nn.Module) -> None:
    """Trap 3. The first points are taken as they are stored, the start of the farthest points is fixed."""
    clouds = random_clouds(40, 100)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(all_logits(classifier, clouds, 64, votes=2))
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*found)
    seen = []
    for _ in predict_logits(classifier, clouds, 64, change=lambda points, _: (seen.append(points), points)[1]):
        pass
    assert torch.equal(torch.cat(seen)[:40], clouds.points[:, :64].float() * UNIT)
    assert (farthest_points(torch.cat(seen), 8)[:, 0] == 0).all()


def test_points_near_the_origin_are_sampled_like_others() -> None:
    """Trap 4. PointNet++'s kernel skips points with |p|^2 <= 1e-3."""
    points = torch.tensor([[[1.0, 0, 0], [0.99, 0, 0], [0, 0, 0], [1e-2, 0, 0], [-1e-2, 0, 0]]])
    assert farthest_points(points, 5).tolist() == [[0, 4, 3, 2, 1]]
    tiny = torch.randn(1, 50, 3) * 1e-3
    assert len(farthest_points(tiny, 50)[0].unique()) == 50


def test_a_short_last_batch_counts_by_its_clouds() -> None:
    """Trap 5. 33 clouds are a group of 32 and one of 1: a mean over batches would say (31 / 32 + 0) / 2."""

    class FirstCoordinate(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return torch.stack([-points[:, 0, 0], points[:, 0, 0]], dim=1)

    points = torch.full((33, 5, 3), 100, dtype=torch.int16)
    label = torch.ones(33, dtype=torch.long)
    label[[3, 32]] = 0  # the wrong ones: one among the 32, and the last alone
    for batch_size in (1, 8, 32, 64):
        metrics, confusion = evaluate_classifier(
            FirstCoordinate(), CloudSet(points, label, ["a", "b"]), 5, batch_size=batch_size
        )
        assert metrics["overall_accuracy"] == 31 / 33 and int(confusion.sum()) == 33


DEGENERATE = {
    "one point": torch.randn(4, 1, 3),
    "two points": torch.randn(4, 2, 3),
    "fewer than neighbours": torch.randn(4, 5, 3),
    "fewer than centres": torch.randn(4, 20, 3),
    "all the same": torch.ones(4, 100, 3),
    "few distinct": torch.randn(4, 6, 3).repeat(1, 16, 1),
    "collinear": torch.linspace(-1, 1, 100).view(1, 100, 1) * torch.randn(4, 1, 3),
    "flat": torch.randn(4, 100, 3) * torch.tensor([1.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("attention", ["external", "offset"])
def test_degenerate_clouds_train_and_evaluate(name: str, attention: str) -> None:
    """Trap 7. After point dropout clouds have few distinct points: nothing crashes, no NaN, backward included."""
    model = PointClassifier(3, head_channels=(16,), **{**NETWORK, "attention": attention})
    segmenter = PartSegmenter(
        6, 3, neighbour_embedding="sg", **{**NETWORK, "attention": attention, "num_centres": ()}, head_channels=(16, 12)
    )
    points = DEGENERATE[name].clone()
    category = torch.tensor([0, 1, 2, 0])
    for network, inputs in ((model, (points,)), (segmenter, (points, category))):
        logits = network.train()(*inputs)
        logits.square().mean().backward()
        assert logits.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert network.eval()(*inputs).isfinite().all()
    order = farthest_points(points, 32)
    for cloud, chosen in zip(points, order, strict=True):
        distinct = len(cloud.unique(dim=0))
        assert len(cloud[chosen].unique(dim=0)) == min(distinct, 32)  # every distinct place before any twice


def test_every_corruption_of_every_degenerate_cloud_is_classified(classifier: nn.Module) -> None:
    """Trap 7, at test time."""
    for points in DEGENERATE.values():
        for name in CORRUPTIONS:
            changed = corrupt(points / points.norm(dim=-1).max(), torch.arange(4), name, 5)
            assert changed.shape[1] >= 1 and classifier(changed).isfinite().all()


@pytest.mark.parametrize("num_points", [64, 100])
def test_classification_is_the_same_to_the_bit_for_every_batch_size(classifier: nn.Module, num_points: int) -> None:
    """The network sees groups of one size; products of another shape round differently."""
    clouds = random_clouds(75, 100)
    expected = all_logits(classifier, clouds, num_points, batch_size=75)
    for batch_size in (1, 7, 32, 64, 500):
        assert torch.equal(all_logits(classifier, clouds, num_points, batch_size=batch_size), expected)
    fewer = clouds.select(torch.arange(40))  # a cloud's answer does not depend on those behind it either
    assert torch.equal(all_logits(classifier, fewer, num_points), expected[:40])

    def change(points: Tensor, items: Tensor) -> Tensor:
        return corrupt(points, items, "add_local", 2)

    voted = [all_logits(classifier, clouds, num_points, batch_size=size, votes=2, change=change) for size in (1, 64)]
    assert torch.equal(*voted)
    metrics = [evaluate_classifier(classifier, clouds, num_points, batch_size=size)[0] for size in (3, 64)]
    assert metrics[0] == metrics[1]


def test_segmentation_is_the_same_to_the_bit_for_every_batch_size() -> None:
    model = PartSegmenter(6, 3, attention="external", embed_channels=(8, 8), num_layers=1, fuse_channels=16)
    clouds = random_clouds(40, 60, parts=True)
    expected = all_logits(model, clouds, 60, batch_size=40)
    for batch_size in (1, 16, 33):
        assert torch.equal(all_logits(model, clouds, 60, batch_size=batch_size), expected)
    metrics = [evaluate_segmenter(model, clouds, 60, batch_size=size) for size in (1, 40)]
    assert metrics[0] == metrics[1]


def test_the_group_depends_on_the_number_of_points_alone() -> None:
    assert [group_size(count) for count in (1, 64, 1024, 2048, 10_000, 100_000)] == [32, 32, 32, 16, 3, 1]


def test_votes_scale_each_cloud_by_its_own_factors() -> None:
    """What a vote sees follows from the cloud's number: neither the batch nor the vote before changes it."""
    clouds, seen = random_clouds(5, 20), []

    class Spy(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            seen.append(points)
            return points.new_zeros(len(points), 3)

    all_logits(Spy(), clouds, 20, votes=3)
    items = torch.arange(5)
    for number in (1, 2):
        factor = 2 / 3 + (3 / 2 - 2 / 3) * uniform(items, torch.full_like(items, number), 3, "vote")
        torch.testing.assert_close(seen[number][:5], seen[0][:5] * factor.unsqueeze(1))
