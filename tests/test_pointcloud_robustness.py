"""ModelNet-C's corruptions against naive versions of their definitions, mCE against its formula, and the report."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointcloud import corruptions, robustness
from pointcloud.clouds import CloudSet
from pointcloud.corruptions import CORRUPTIONS, Draws, cluster_sizes, corrupt, thin, turn_anyhow, turn_upright
from pointcloud.robustness import DGCNN, DGCNN_CLEAN, measure_robustness, summarise
from pointcloud.robustness_pictures import save_robustness

B, N = 6, 1024


@pytest.fixture(scope="module")
def clouds() -> Tensor:
    points = torch.randn(B, N, 3, generator=torch.Generator().manual_seed(3))
    points = points - points.mean(1, keepdim=True)
    return points / points.norm(dim=-1).amax(1).view(-1, 1, 1)


ITEMS = torch.tensor([5, 0, 17, 100, 2467, 3])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_cloud_s_bits_follow_from_seed_and_number_alone(name: str, clouds: Tensor) -> None:
    before = clouds.clone()
    together = corrupt(clouds, ITEMS, name, 3, seed=1)
    order = torch.tensor([4, 2])
    assert torch.equal(together[order], corrupt(clouds[order], ITEMS[order], name, 3, seed=1))
    assert torch.equal(together[:1], corrupt(clouds[:1], ITEMS[:1], name, 3, seed=1))
    assert torch.equal(clouds, before)
    sizes = [corrupt(clouds, ITEMS, name, level, seed=1).shape[1] for level in range(1, 6)]
    changed = corrupt(clouds, ITEMS, name, 3, seed=2)
    assert not torch.equal(together, changed) and together.shape == changed.shape
    assert sizes == {
        "drop_global": [768, 640, 512, 332, 256],
        "drop_local": [924, 824, 724, 624, 524],
        "add_global": [1034, 1044, 1054, 1064, 1074],
        "add_local": [1124, 1224, 1324, 1424, 1524],
    }.get(name, [N] * 5)
    assert together.isfinite().all() and together.dtype == torch.float32


def test_scale_stretches_the_axes_and_returns_to_the_unit_sphere(clouds: Tensor) -> None:
    for level, largest in enumerate((1.6, 1.7, 1.8, 1.9, 2.0), start=1):
        found = corrupt(clouds, ITEMS, "scale", level)
        torch.testing.assert_close(found.norm(dim=-1).amax(1), torch.ones(B))
        torch.testing.assert_close(found.mean(1), torch.zeros(B, 3), rtol=0, atol=1e-6)
        factor = (found.std(1) / clouds.std(1)).double()
        ratio = factor / factor.norm(dim=1, keepdim=True)
        centred = clouds - clouds.mean(1, keepdim=True)
        torch.testing.assert_close(found, centred * factor.float().unsqueeze(1), rtol=1e-4, atol=1e-5)
        assert (ratio.amax(1) / ratio.amin(1)).max() <= largest**2 and ratio.std() > 0.01


def test_jitter_has_the_stated_deviation(clouds: Tensor) -> None:
    for level in range(1, 6):
        noise = corrupt(clouds, ITEMS, "jitter", level) - clouds
        assert float(noise.std()) == pytest.approx(0.01 * level, rel=0.03)
        assert abs(float(noise.mean())) < 0.01 * level * 0.05
        assert float((noise / (0.01 * level)).abs().max()) > 3  # not cut off


def test_rotate_turns_about_the_axes_in_turn(clouds: Tensor) -> None:
    found = corrupt(clouds, ITEMS, "rotate", 5)
    angles = math.radians(30) * (2 * Draws(ITEMS, 0, "modelnet-c", "rotate", 5).uniform(3, "angles") - 1)
    for cloud, angle, result in zip(clouds.double(), angles.tolist(), found, strict=True):
        matrix = np.eye(3)
        for axis, a in enumerate(angle):
            step = np.eye(3)
            i, j = (axis + 1) % 3, (axis + 2) % 3
            step[[i, j], [i, j]] = math.cos(a)
            step[i, j], step[j, i] = -math.sin(a), math.sin(a)
            matrix = step @ matrix
        np.testing.assert_allclose(result.numpy(), cloud.numpy() @ matrix.T, atol=1e-6)
    assert angles.abs().max() <= math.radians(30)


def test_drop_global_keeps_a_random_part(clouds: Tensor) -> None:
    found = corrupt(clouds, ITEMS, "drop_global", 5)
    for cloud, result in zip(clouds, found, strict=True):
        kept = set(map(tuple, result.tolist()))
        assert len(kept) == 256 and kept <= set(map(tuple, cloud.tolist()))
    assert not torch.equal(found, clouds[:, :256])


def test_drop_local_equals_the_definition_one_cloud_at_a_time(clouds: Tensor) -> None:
    found = corrupt(clouds, ITEMS, "drop_local", 2)
    draws = Draws(ITEMS, 0, "modelnet-c", "drop_local", 2)
    sizes = cluster_sizes(draws, 200).tolist()
    chance = draws.uniform(8 * N, "centres").view(B, 8, N)
    for i, cloud in enumerate(clouds.double()):
        left = list(range(N))
        for cluster, size in enumerate(sizes[i]):
            centre = max(left, key=lambda j: float(chance[i, cluster, j]))
            near = sorted(left, key=lambda j: float((cloud[j] - cloud[centre]).square().sum()))[:size]
            left = [j for j in left if j not in near]
        assert torch.equal(found[i], clouds[i, left])


def test_clusters_are_one_to_eight_and_hold_all_points() -> None:
    sizes = cluster_sizes(Draws(torch.arange(4000), "sizes"), 300)
    assert torch.equal(sizes.sum(1), torch.full((4000,), 300))
    count = (sizes > 0).sum(1)
    assert torch.equal((sizes > 0).int().cummin(1).values, (sizes > 0).int())  # the first ones, no gap
    shares = torch.bincount(count, minlength=9)[1:] / 4000
    assert (shares - 1 / 8).abs().max() < 0.02


def test_added_points_lie_in_the_ball_uniformly(clouds: Tensor) -> None:
    items = torch.arange(400)
    found = corrupt(clouds[:1].expand(400, -1, -1), items, "add_global", 5)
    assert torch.equal(found[:, :N], clouds[:1].expand(400, -1, -1))
    radius = found[:, N:].norm(dim=-1).flatten()
    assert radius.max() <= 1 + 1e-6
    assert float((radius < 0.5).double().mean()) == pytest.approx(1 / 8, abs=0.01)  # an eighth of the volume
    assert found[:, N:].mean((0, 1)).abs().max() < 0.02


def test_added_clusters_surround_points_of_the_cloud(clouds: Tensor) -> None:
    small = 0.5 * clouds  # far from the unit sphere: nothing is pulled back
    found = corrupt(small, ITEMS, "add_local", 5)
    assert torch.equal(found[:, :N], small)
    assert corrupt(clouds, ITEMS, "add_local", 5).norm(dim=-1).max() <= 1 + 1e-6
    draws = Draws(ITEMS, 0, "modelnet-c", "add_local", 5)
    sizes, first = cluster_sizes(draws, 500), draws.uniform(N, "centres").argsort(1, descending=True)
    for i in range(B):
        start = N
        for cluster in range(int((sizes[i] > 0).sum())):
            members = found[i, start : start + int(sizes[i, cluster])] - small[i, first[i, cluster]]
            start += len(members)
            if len(members) >= 50:
                assert 0.06 < float(members.square().mean().sqrt()) < 0.15
        assert start == N + 500


def test_counts_follow_the_number_of_points() -> None:
    points = torch.randn(2, 256, 3)
    assert corrupt(points, torch.arange(2), "drop_local", 5).shape[1] == 256 - 125
    assert corrupt(points, torch.arange(2), "add_global", 1).shape[1] == 256 + 2
    for count in (1, 2, 3):
        few = torch.zeros(2, count, 3)
        assert all(corrupt(few, torch.arange(2), name, 5).isfinite().all() for name in CORRUPTIONS)


def test_turns_have_the_stated_angle_and_thinner_clouds_are_nested(clouds: Tensor) -> None:
    for degrees in (15, 180):
        upright, anyhow = (turned(clouds, ITEMS, degrees) for turned in (turn_upright, turn_anyhow))
        torch.testing.assert_close(upright[..., 2], clouds[..., 2])
        flat = clouds[..., :2] / clouds[..., :2].norm(dim=-1, keepdim=True)
        turned = upright[..., :2] / upright[..., :2].norm(dim=-1, keepdim=True)
        cos = (flat * turned).sum(-1)
        torch.testing.assert_close(cos, torch.full_like(cos, math.cos(math.radians(degrees))), rtol=0, atol=1e-4)
        for cloud, found in zip(clouds, anyhow, strict=True):
            matrix = torch.linalg.lstsq(cloud, found).solution
            assert float(matrix.trace()) == pytest.approx(1 + 2 * math.cos(math.radians(degrees)), abs=1e-4)
            assert float(torch.det(matrix)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(thin(clouds, ITEMS, 256)[:, :64], thin(clouds, ITEMS, 64))
    assert torch.equal(turn_upright(clouds, ITEMS, 30)[:2], turn_upright(clouds[:2], ITEMS[:2], 30))


def test_unknown_names_and_levels_are_refused(clouds: Tensor) -> None:
    for name, level, said in (("blur", 1, "corruption 'blur'"), ("scale", 0, "level 0"), ("scale", 6, "level 6")):
        with pytest.raises(ValueError, match=said):
            corrupt(clouds, ITEMS, name, level)


def test_mce_is_one_for_dgcnn_and_follows_its_formula() -> None:
    same = summarise(DGCNN_CLEAN, {name: [value] * 5 for name, value in DGCNN.items()})
    assert same["mce"] == pytest.approx(1) and same["rmce"] == pytest.approx(1)
    assert same["mean_overall_accuracy"] == pytest.approx(0.764, abs=5e-4)  # the paper's mean over the corruptions
    levels = {name: [0.9, 0.8, 0.7, 0.6, 0.5] for name in DGCNN}
    errors = [sum(1 - a for a in levels[name]) / sum([1 - DGCNN[name]] * 5) for name in DGCNN]
    assert summarise(0.93, levels)["mce"] == pytest.approx(sum(errors) / 7)
    losses = [sum(0.93 - a for a in levels[name]) / (5 * (DGCNN_CLEAN - DGCNN[name])) for name in DGCNN]
    assert summarise(0.93, levels)["rmce"] == pytest.approx(sum(losses) / 7)


class Tall(nn.Module):
    """Says 1 where a cloud's mean height is above 0; turns about the up axis cannot change that."""

    def forward(self, points: Tensor) -> Tensor:
        height = points[..., 2].mean(1)
        return torch.stack([-height, height], dim=1)


def test_report_measures_every_corruption_and_curve(tmp_path: Path) -> None:
    points = (torch.randn(9, 80, 3) * 1000).to(torch.int16)
    label = (points[..., 2].float().mean(1) > 0).long()
    report = measure_robustness(Tall(), CloudSet(points, label, ["low", "high"]), 80, seed=4)
    metrics = report["metrics"]
    assert report["clean"] == 1 and report["turned_upright"]["overall_accuracy"] == [1.0] * 6
    assert report["turned_anyhow"]["overall_accuracy"][-1] < 1
    assert report["density"]["points"] == [80, 64]
    assert sum("level" in name for name in metrics) == 35 and all(name.endswith("_seed4") for name in metrics)
    assert metrics["mce_modelnetc_generated_seed4"] == report["mce"]
    assert metrics["overall_accuracy_turned_upright_90degrees_seed4"] == 1
    again = measure_robustness(Tall(), CloudSet(points, label, ["low", "high"]), 80, seed=4, batch_size=2)
    assert again == report
    save_robustness(json.loads(json.dumps(report)), tmp_path / "curves.png", title="tall")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_tables_agree() -> None:
    assert list(CORRUPTIONS) == list(DGCNN) == list(robustness.SEVERITY)
    assert all(len(levels) == corruptions.LEVELS for _, levels in robustness.SEVERITY.values())


def test_the_script_reports_corruptions(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    from pointcloud.models import CLASSIFIER
    from shared_attn.runtime.weights import save_weights

    random = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"boxes_40_{split}.npz",
            points=random.integers(-2300, 2300, (7, 40, 3)).astype(np.int16),
            label=(np.arange(7) % 2).astype(np.uint8),
            class_names=np.array(["a", "b"]),
            scale=np.float32(1 / 4096),
        )
    keywords: dict[str, Any] = {
        "num_classes": 2, "attention": "external", "embed_channels": [8], "neighbour_channels": [8],
        "num_centres": [8], "num_neighbours": 4, "num_layers": 1, "fuse_channels": 8, "head_channels": [8],
    }  # fmt: skip
    from pointcloud.classifier import PointClassifier

    header = {
        "kind": CLASSIFIER, "name": "tiny", "model": keywords, "class_names": ["a", "b"], "num_points": 40,
        "data": {"name": "boxes"}, "metrics": {},
    }  # fmt: skip
    save_weights(tmp_path / "tiny.safetensors", PointClassifier(**keywords).state_dict(), header)
    arguments = ("--weights", tmp_path / "tiny.safetensors", "--data", tmp_path, "--device", "cpu")

    def call(*more: object) -> subprocess.CompletedProcess[str]:
        return run_script("evaluate_pointcloud.py", *arguments, *more)

    done = call("--corruptions", "--json", tmp_path / "found.json", "--record", tmp_path / "record.json", "--seed", "2")
    assert done.returncode == 0, done.stderr
    found, record = (json.loads((tmp_path / name).read_text()) for name in ("found.json", "record.json"))
    assert (tmp_path / "found.png").exists()
    assert set(found["robustness"]["corruptions"]) == set(CORRUPTIONS)
    assert record["metrics"] == found["metrics"] and record["kind"] == "evaluation" and record["seeds"] == [2]
    assert "mce_modelnetc_generated_seed2" in done.stdout
    done = call("--figure", tmp_path / "x.png")
    assert done.returncode == 2 and done.stderr.startswith("error: --figure") and done.stderr.count("\n") == 1
