"""Farthest points and neighbours as operators, their kernels in Triton's interpreter and compiled for a GPU that is not
here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_processes import interpret, run_python
from torch import Tensor, nn

from pointcloud import kernels
from pointcloud.geometry import farthest_points, k_nearest
from pointcloud.kernels import MAX_POINTS, points, takes_points

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = torch.tensor([3, 40])


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_operators_pass_pytorchs_checks(lengths: Tensor | None) -> None:
    cloud = torch.randn(2, 40, 3)
    torch.library.opcheck(points.farthest_points, (cloud, 7, lengths))
    torch.library.opcheck(points.k_nearest, (cloud, cloud[:, :5], 3, lengths))


class _Both(nn.Module):
    def forward(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(cloud, 6)
        return chosen, k_nearest(cloud, cloud[:, :5], 4)


def test_compiled_and_exported_programs_hold_the_operators() -> None:
    cloud = torch.randn(2, 40, 3)
    expected = _Both()(cloud)
    compiled = torch.compile(_Both(), fullgraph=True, backend="aot_eager")(cloud)
    assert all(torch.equal(a, b) for a, b in zip(compiled, expected, strict=True))
    program = torch.export.export(_Both(), (cloud,))
    for name in ("pointcloud.farthest_points", "pointcloud.k_nearest"):
        assert name in program.graph_module.code
    assert all(torch.equal(a, b) for a, b in zip(program.module()(cloud), expected, strict=True))


class _OnCuda:
    """A tensor as far as the choice of kernels looks."""

    device, is_cuda, dtype = torch.device("cuda"), True, torch.float32

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize(
    ("x", "taken"),
    [
        (_OnCuda(2, 1024, 3), True),
        (_OnCuda(2, MAX_POINTS, 3), True),
        (_OnCuda(2, MAX_POINTS + 1, 3), False),
        (_OnCuda(0, 10, 3), False),
        (_OnCuda(2, 9, 3, dtype=torch.float64), False),
        (torch.randn(2, 9, 3), False),
    ],
)
def test_kernels_are_chosen_by_device_dtype_and_shape(monkeypatch: pytest.MonkeyPatch, x: Any, taken: bool) -> None:
    pytest.importorskip("triton")
    properties = type("Properties", (), {"major": 9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr("shared_attn.kernels.AVAILABLE", True)
    assert takes_points(x) == taken
    monkeypatch.setattr("shared_attn.kernels.AVAILABLE", False)
    assert not kernels.takes_points(x)


def test_import_does_not_load_the_kernels() -> None:
    code = (
        "import sys\nfrom pointcloud.geometry import farthest_points\nimport torch\n"
        "farthest_points(torch.randn(1, 5, 3), 2)\n"
        "print([m for m in ('triton', 'pointcloud.kernels.points_triton') if m in sys.modules])"
    )
    assert "points_triton" not in run_python("-c", code)


def test_kernels_equal_their_twins() -> None:
    interpret("point_kernel_comparison.py", 6)


@pytest.mark.slow
def test_kernels_equal_their_twins_in_many_cases() -> None:
    interpret("point_kernel_comparison.py", 100)


def test_kernels_compile_for_gpus_without_spilling_or_fusing_rounding_steps() -> None:
    pytest.importorskip("triton", "3.3", reason="before, Triton was told otherwise what to compile")
    rows: list[dict[str, Any]] = json.loads(run_python("tests/point_kernel_compilation.py"))
    assert {row["kernel"] for row in rows} == {"farthest", "nearest"}
    assert {row["architecture"] for row in rows} == {86, 90}
    for row in rows:
        assert row["cubin"] > 1000, row
        assert 0 <= row["stack"] <= 64, row
        assert not row["fused"], row


def test_classifying_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from pointcloud.classifier import PointClassifier; "
        "model = PointClassifier(3, neighbour_channels=(8, 8), num_centres=(8, 4), num_neighbours=4).eval(); "
        "model(torch.rand(1, 32, 3)); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
