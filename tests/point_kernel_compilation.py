"""Compiles the kernels for farthest points and neighbours ahead of time, without a GPU; prints a JSON list.

    python tests/point_kernel_compilation.py

Launches of `pointcloud.kernels.points_launch` are recorded on meta tensors, so that what a GPU would get is compiled.
Run by tests/test_point_kernels.py in a process of its own, where Triton compiles instead of interpreting.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import kernel_compilation
import torch
import triton
from kernel_compilation import Launch, resources, source_of
from triton.backends.compiler import GPUTarget

from pointcloud.kernels import points_launch, points_triton

# Clouds, points, queries, neighbours, ragged: the two levels of the classifier, and the largest cloud.
CASES = [(32, 1024, 512, 32, False), (32, 512, 256, 32, True), (2, 8192, 8192, 32, True), (3, 100, 7, 5, False)]
ARCHITECTURES = (86, 90)


class Recorder:
    """Stands in for the module of kernels: keeps the launches instead of running them."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(points_triton, name)

        class Grid:
            def __getitem__(_, grid: tuple[int, ...]) -> Callable[..., None]:  # noqa: N805
                return lambda *arguments, **keywords: self.launches.append(Launch(kernel, arguments, keywords))

        return Grid()


def launches(B: int, N: int, M: int, K: int, ragged: bool) -> list[Launch]:
    points, queries = (torch.empty(B, size, 3, device="meta") for size in (N, M))
    lengths = torch.empty(B, dtype=torch.long, device="meta") if ragged else None
    recorder = Recorder()
    points_launch.kernels = recorder  # type: ignore[assignment]
    points_launch.farthest_points(points, M, lengths)
    points_launch.k_nearest(points, queries, K, lengths)
    return recorder.launches


def main() -> None:
    kernel_compilation.TYPES[torch.int64] = "*i64"
    rows = []
    for architecture in ARCHITECTURES:
        for case in CASES:
            for launch in launches(*case):
                source, options = source_of(launch)
                kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
                rows.append(
                    {
                        "kernel": source.name,
                        "case": str(case),
                        "architecture": architecture,
                        "cubin": len(kernel.asm["cubin"]),
                        "fused": "fma.rn.f32" in kernel.asm["ptx"],
                        "warps": kernel.metadata.num_warps,
                        **resources(kernel.asm["cubin"]),
                    }
                )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
