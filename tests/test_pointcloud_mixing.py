"""Mixed clouds and their labels, the assignment behind them, and stochastic depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pointcloud.assignment import assign_points, halving_order
from pointcloud.augmentation import Augmentation, draw_clouds
from pointcloud.classifier import PointClassifier
from pointcloud.clouds import CloudSet, read_clouds_file
from pointcloud.draws import beta
from pointcloud.layers import drop_path
from pointcloud.losses import right_share, smoothed_cross_entropy
from pointcloud.mixing import mix_clouds, mix_points
from pointcloud.presets import Config

UNIT, D, N, K = 1 / 4096, 12, 40, 3
SMALL: dict[str, Any] = {
    "attention": "external", "embed_channels": (8, 8), "neighbour_channels": (12,), "num_centres": (16,),
    "num_neighbours": 4, "num_layers": 3, "fuse_channels": 24, "head_channels": (16,), "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def clouds() -> CloudSet:
    points = (torch.randn(D, N, 3).clamp(-3, 3) * 1000).to(torch.int16)
    return CloudSet(points, torch.arange(D) % K, ["a", "b", "c"])


def mix(clouds: CloudSet, items: list[int], epoch: int = 0, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed clouds, their labels, and the clouds as they were."""
    config = Config(point_mix=changes.pop("point_mix"), **{"mix_probability": 1.0, **changes})
    index = torch.tensor(items)
    epochs, options = torch.full_like(index, epoch), Augmentation(N, scale=(0.8, 1.25), shift=0.1)
    points, _ = draw_clouds(clouds.points, index, epochs, unit=UNIT, seed=config.seed, options=options)
    (mixed,), label = mix_clouds(config, clouds, points, index, epochs, options)
    return mixed, label, points


@pytest.mark.parametrize("point_mix", ["cutmix_k", "cutmix_r", "rsmix"])
def test_the_label_is_the_exact_share_of_points(point_mix: str, clouds: CloudSet) -> None:
    before = clouds.points.clone()
    centre = 1 / N if point_mix == "rsmix" else 0  # the piece's centre comes to lie where the gap's was
    kept = []
    for epoch in range(20):
        mixed, label, points = mix(clouds, list(range(D)), epoch, point_mix=point_mix)
        torch.testing.assert_close(label.sum(1), torch.ones(D))
        own = label[torch.arange(D), clouds.label]
        unchanged = (mixed == points).all(-1).double().mean(1)
        other_class = (label > 0).sum(1) == 2
        torch.testing.assert_close(own[other_class].double(), unchanged[other_class] - centre, rtol=0, atol=1e-6)
        assert (own >= unchanged - centre - 1e-6).all()
        kept.append(unchanged)
    share = 1 - torch.cat(kept)
    assert torch.equal(clouds.points, before)
    assert share.max() <= (0.5 if point_mix == "rsmix" else 1) and share.unique().numel() > 15


@pytest.mark.parametrize("point_mix", ["cutmix_k", "cutmix_r", "rsmix"])
def test_a_mixed_cloud_follows_from_its_item_alone(point_mix: str, clouds: CloudSet) -> None:
    together, labels, _ = mix(clouds, [0, 1, 2, 3, 4], 3, point_mix=point_mix)
    alone, label, _ = mix(clouds, [3], 3, point_mix=point_mix)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-6)
    assert torch.equal(labels[3:4], label)
    assert not torch.equal(mix(clouds, [3], 4, point_mix=point_mix)[0], alone)
    assert not torch.equal(mix(clouds, [3], 3, point_mix=point_mix, seed=1)[0], alone)


def test_as_many_clouds_are_mixed_as_asked(clouds: CloudSet) -> None:
    changed = []
    for epoch in range(40):
        mixed, label, points = mix(clouds, list(range(D)), epoch, point_mix="cutmix_r", mix_probability=0.25)
        same = (mixed == points).all(-1).all(1)
        assert torch.equal(label[same], torch.eye(K)[clouds.label[same]])
        changed.append(~same)
    assert float(torch.cat(changed).double().mean()) == pytest.approx(0.25, abs=0.06)


def pieces(point_mix: str, share: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, second = torch.randn(4, N, 3), torch.randn(4, N, 3) + 5
    chance = torch.rand(4, 2, N)
    mixed, moved = mix_points(first, second, torch.full((4,), share), chance, point_mix)  # type: ignore[arg-type]
    assert moved.tolist() == [int(share * N)] * 4
    return first, second, chance, mixed, (mixed != first).any(-1)


def test_cutmix_replaces_points_by_those_assigned_to_them() -> None:
    for point_mix in ("cutmix_k", "cutmix_r"):
        first, second, chance, mixed, replaced = pieces(point_mix)
        match = assign_points(first, second)
        for i in range(4):
            assert torch.equal(mixed[i, replaced[i]], second[i, match[i, replaced[i]]])
            if point_mix == "cutmix_r":
                expected = set(chance[i, 0].topk(12).indices.tolist())
            else:
                centre = first[i, chance[i, 0].argmax()]
                expected = set((first[i] - centre).norm(dim=-1).topk(12, largest=False).indices.tolist())
            assert set(replaced[i].nonzero().flatten().tolist()) == expected


def test_rsmix_moves_a_rigid_piece_into_the_gap() -> None:
    first, second, chance, mixed, replaced = pieces("rsmix")
    for i in range(4):
        centre, from_ = first[i, chance[i, 0].argmax()], second[i, chance[i, 1].argmax()]
        piece = second[i, (second[i] - from_).norm(dim=-1).topk(12, largest=False).indices] - from_ + centre
        gap = (first[i] - centre).norm(dim=-1).topk(12, largest=False).indices
        assert set(gap.tolist()) >= set(replaced[i].nonzero().flatten().tolist())
        found = mixed[i, gap]
        assert torch.cdist(piece, found).amin(1).max() < 1e-5 and torch.cdist(found, piece).amin(1).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 99))
def test_an_assignment_is_a_permutation_whatever_the_number_of_points(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    first, second = torch.randn(3, count, 3), torch.randn(3, count, 3)
    second[0] = second[0, :1]  # one place only
    match = assign_points(first, second)
    assert torch.equal(match.sort(1).values, torch.arange(count).expand(3, -1))
    assert torch.equal(match[1:2], assign_points(first[1:2], second[1:2]))
    assert torch.equal(halving_order(first).sort(1).values, torch.arange(count).expand(3, -1))


def test_an_assignment_is_near_the_optimum(shared_data: Path) -> None:
    clouds = read_clouds_file(shared_data / "modelnet40_1024_test.npz")
    points = clouds.points[::250, :512].float() * clouds.unit
    first, second = points[:5], points[5:10]
    match = assign_points(first, second)
    for a, b, index in zip(first, second, match, strict=True):
        rows, columns = linear_sum_assignment(torch.cdist(a, b).numpy())
        least = (a[rows] - b[columns]).norm(dim=-1).sum()
        assert (a - b[index]).norm(dim=-1).sum() < 1.15 * least
        assert (a - b).norm(dim=-1).sum() > 1.5 * least


@pytest.mark.parametrize("concentration", [0.3, 1.0, 4.0])
def test_shares_are_beta_distributed(concentration: float) -> None:
    items = torch.arange(20000)
    share = beta(items, torch.zeros_like(items), concentration, 0, "a").double()
    assert share.min() >= 0 and share.max() <= 1
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.05)
    few = items[[7, 70]]
    assert torch.equal(beta(few, torch.zeros_like(few), concentration, 0, "a"), share[[7, 70]].float())
    if concentration == 1:
        assert np.abs(np.sort(share.numpy()) - np.linspace(0, 1, 20000)).max() < 0.015  # uniform


def test_the_loss_of_a_mixed_label_mixes_the_losses() -> None:
    logits, label, other = torch.randn(6, K), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 1, 0, 2, 0, 0])
    share = torch.rand(6, 1)
    mixed = (1 - share) * torch.eye(K)[label] + share * torch.eye(K)[other]
    parts = [
        torch.stack([smoothed_cross_entropy(logits[i : i + 1], one[i : i + 1], 0.2) for i in range(6)])
        for one in (label, other)
    ]
    expected = ((1 - share[:, 0]) * parts[0] + share[:, 0] * parts[1]).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, mixed, 0.2), expected)
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, torch.eye(K)[label], 0.2), smoothed_cross_entropy(logits, label, 0.2)
    )
    torch.testing.assert_close(right_share(logits, mixed), mixed[torch.arange(6), logits.argmax(1)])
    assert torch.equal(right_share(logits, label), logits.argmax(1) == label)


def test_drop_path_drops_whole_branches_and_keeps_the_expectation() -> None:
    before, after = torch.randn(4000, 2, 3), torch.randn(4000, 2, 3)
    found = drop_path(before, after, 0.3)
    dropped = (found == before).all(-1).all(-1)
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.03)
    expected = before + (after - before) / 0.7
    torch.testing.assert_close(found[~dropped], expected[~dropped])


@pytest.mark.parametrize("position", [False, True])
def test_drop_path_is_the_identity_in_evaluation_and_grows_over_the_layers(
    position: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = PointClassifier(5, position_embedding=position, **SMALL)
    dropping = PointClassifier(5, position_embedding=position, drop_path=0.6, **SMALL)
    dropping.load_state_dict(plain.state_dict())
    points = torch.randn(4, 30, 3)
    assert torch.equal(plain.eval()(points), dropping.eval()(points))
    plain.train(), dropping.train()
    outputs = []
    for model in (plain, dropping, dropping):
        outputs.append(model(points))
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    rates: list[float] = []
    monkeypatch.setattr("pointcloud.encoder.drop_path", lambda _x, after, rate, _share: (rates.append(rate), after)[1])
    dropping(points)
    assert rates == pytest.approx([0.2, 0.4, 0.6])
    with pytest.raises(ValueError, match="drop_path 1.0: expected at least 0 and below 1"):
        PointClassifier(5, drop_path=1.0, **SMALL)
