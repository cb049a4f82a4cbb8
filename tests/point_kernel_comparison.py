"""The Triton kernels for farthest points and neighbours against their plain twins: the same indices, bit for bit.

    TRITON_INTERPRET=1 python tests/point_kernel_comparison.py [number of examples]

runs them on a CPU in Triton's interpreter, over shapes, lengths and point sets that hypothesis draws; in a process
of its own, because Triton reads that variable once. A GPU runs `compare` on fixed cases (tests/test_devices.py).

B clouds, N points, M queries, K neighbours.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from kernel_processes import compare_drawn
from torch import Tensor

from pointcloud.kernels import points_launch, points_plain


class Case(NamedTuple):
    B: int = 2
    N: int = 100
    M: int = 20
    K: int = 8
    count: int = 30
    kind: str = "normal"
    ragged: bool = False
    dtype: torch.dtype = torch.float32


def cloud(case: Case) -> Tensor:
    B, N = case.B, case.N
    if case.kind == "grid":  # exact ties everywhere
        points = torch.randint(-2, 3, (B, N, 3)).float()
    elif case.kind == "duplicates":
        points = torch.randn(B, 5, 3).gather(1, torch.randint(5, (B, N, 1)).expand(-1, -1, 3))
    elif case.kind == "line":
        points = torch.linspace(-1, 1, N).view(1, N, 1).expand(B, N, 3).contiguous()
    elif case.kind == "far":  # where products of coordinates would lose the neighbours
        points = 100 + 0.1 * torch.randn(B, N, 3)
    else:
        points = torch.randn(B, N, 3)
    return points.to(case.dtype)


def compare(case: Case, device: torch.device | str = "cpu") -> None:
    """Raises AssertionError where an index differs."""
    torch.manual_seed(case.B + case.N + case.M)
    points = cloud(case).to(device)
    queries = torch.cat([points, torch.randn_like(points)], 1)[:, : case.M]
    lengths = torch.randint(1, case.N + 1, (case.B,)).to(device) if case.ragged else None
    found = points_launch.farthest_points(points, case.count, lengths)
    expected = points_plain.farthest_points(points.float(), case.count, lengths)
    assert found.dtype == expected.dtype and torch.equal(found, expected), f"farthest points: {case}"
    k = min(case.K, case.N)
    found = points_launch.k_nearest(points, queries, k, lengths)
    expected = points_plain.k_nearest(points.float(), queries.float(), k, lengths)
    real = torch.ones_like(found, dtype=torch.bool)
    if lengths is not None:  # past a cloud's length indices have no meaning
        real &= torch.arange(k, device=found.device) < lengths.view(-1, 1, 1)
    assert found.dtype == expected.dtype and torch.equal(found[real], expected[real]), f"neighbours: {case}"


def main(examples: int) -> None:
    from hypothesis import strategies as st

    cases = st.builds(
        Case,
        B=st.integers(1, 3),
        N=st.one_of(st.integers(1, 20), st.integers(1, 300), st.integers(1, 4096)),
        M=st.integers(1, 20),
        K=st.integers(1, 40),
        count=st.one_of(st.integers(1, 40), st.just(520)),
        kind=st.sampled_from(["normal", "grid", "duplicates", "line", "far"]),
        ragged=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float16]),
    )

    compare_drawn(compare, cases, examples)
    for points in (1, 4096):
        compare(Case(B=1, N=points, M=3, K=32, count=8))
    print("equal")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
