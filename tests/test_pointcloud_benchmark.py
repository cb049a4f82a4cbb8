"""The benchmark of training steps: what is compared, the parts of a step, and an original from a user's path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from machine import needs_bfloat16

from pointcloud.benchmark import REST, CloudStepTiming, create_step, time_steps
from pointcloud.classifier import PointClassifier
from pointcloud.geometry import farthest_points
from pointcloud.original import load_original
from pointcloud.step_parts import GEOMETRY, marked_parts
from shared_attn.step_clock import PartClock

# Not the original's code: a network of two of its parameters, which asks for what it imports.
MODEL = """
import torch
from util import sample

class Pct(torch.nn.Module):
    def __init__(self, args, output_channels=40):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(3, 64, kernel_size=1, bias=False)
        self.linear3 = torch.nn.Linear(256, output_channels)
        self.dropout = args.dropout

    def forward(self, x):
        return self.linear3(self.conv1(sample(x)).amax(2).repeat(1, 4))
"""
UTIL = """
from pointnet2_ops import pointnet2_utils

def sample(x):
    index = pointnet2_utils.furthest_point_sample(x.permute(0, 2, 1), 4).long()
    return x.gather(2, index.unsqueeze(1).expand(-1, 3, -1))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "util.py").write_text(UTIL)
    return tmp_path


def test_original_runs_from_its_folder_with_our_weights_and_leaves_nothing_behind(checkout: Path) -> None:
    model = PointClassifier(7, dropout=0.25)
    before = set(sys.modules), list(sys.path)
    original = load_original(checkout, model)
    assert {name.partition(".")[0] for name in set(sys.modules) - before[0]}.isdisjoint({"model", "util"})
    assert sys.path == before[1] and not (checkout / "__pycache__").exists()
    points = torch.randn(2, 30, 3)
    state = model.state_dict()
    chosen = points.gather(1, farthest_points(points, 4).unsqueeze(2).expand(-1, -1, 3))
    pooled = (chosen @ state["encoder.embed.0.linear.weight"].t()).amax(1).repeat(1, 4)
    torch.testing.assert_close(original(points), pooled @ state["head.4.weight"].t() + state["head.4.bias"])
    assert original.network.dropout == 0.25


def test_what_is_no_checkout_is_refused_in_one_line(checkout: Path, tmp_path: Path) -> None:
    model = PointClassifier(7)
    with pytest.raises(FileNotFoundError, match="--original .*: no model.py and no util.py, expected a PCT_Pytorch"):
        load_original(tmp_path / "nothing", model)
    for text, said in (("import no_such_module", "no_such_module"), ("class Pct: pass", "Pct"), ("1 +", "syntax")):
        (checkout / "model.py").write_text(text)
        with pytest.raises(ValueError, match=f"--original .*not PCT_Pytorch's network as published .*{said}") as error:
            load_original(checkout, model)
        assert "\n" not in str(error.value)
    (checkout / "model.py").write_text(MODEL.replace("conv1", "other"))
    with pytest.raises(ValueError, match="not PCT_Pytorch's network .*other"):
        load_original(checkout, model)


def test_parts_of_a_step_are_all_of_it_in_the_networks_order() -> None:
    model = PointClassifier(5, attention="external", num_centres=(32, 16), num_neighbours=4, dropout=0.0)
    points, label = torch.randn(2, 64, 3), torch.tensor([1, 2])
    step, clock = create_step(model, points, label, "fp32"), PartClock(torch.device("cpu"))
    seen: list[str] = []
    mark = clock.mark
    clock.mark = lambda part: (seen.append(part), mark(part))[1]  # type: ignore[method-assign]
    started = clock.last
    with marked_parts(model, clock):
        step()
        clock.mark(REST)
    order = [part for place, part in enumerate(seen) if place == 0 or seen[place - 1] != part]
    forward = ["maps of points", GEOMETRY, "neighbour embedding 1", GEOMETRY, "neighbour embedding 2"]
    forward += ["stem", "attention", "fusion", "pooling and head"]
    backward = [part for part in reversed(forward) if part != GEOMETRY]
    assert order == [REST, *forward, REST, *backward[:-1], REST]  # points have no gradient: their maps' ends the step
    assert sum(clock.seconds.values()) == pytest.approx(clock.last - started)
    assert sum(clock.shares.values()) == pytest.approx(1)
    count = len(seen)
    step()
    assert len(seen) == count, "no hook stays"


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bfloat16)])
def test_timing_says_what_was_measured(precision: str) -> None:
    rows = list(time_steps(batch_size=2, num_points=64, repeats=1, precision=precision))
    assert [row.name for row in rows] == ["pct", "eat"]
    for row in rows:
        assert row.items_per_second == pytest.approx(2 / row.seconds)
        assert row.speedup == pytest.approx(row.published_seconds / row.seconds)
        assert row.floor_fraction == pytest.approx(row.floor_seconds / row.seconds)
        assert row.peak_mb < row.published_peak_mb
        assert row.original_seconds is row.original_peak_mb is None and "%" in str(row)
        assert f"{row.name}_{precision}_speedup" in row.metrics
    assert len(CloudStepTiming.head()) == len(str(rows[0]).splitlines()[0])


def test_floor_counts_three_forwards_of_products() -> None:
    row = next(time_steps(batch_size=2, num_points=1024, repeats=1))
    operations = row.floor_seconds * row.product_gflops * 1e9
    assert operations / 2 / 3 / 2 / 1e6 == pytest.approx(2238 - 18.8 - (805 - 38), rel=0.03)  # millions a cloud
