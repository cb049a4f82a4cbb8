"""Compiles every kernel that a launch would run, ahead of time and without a GPU; prints a JSON list.

    python tests/kernel_compilation.py [numbers of cases; all without any]

Each launch of `shared_attn.kernels.external_launch` is recorded on meta tensors, so what is compiled is what a GPU
would get: types, constants, alignment and tiles included. Run by tests/test_kernels.py in a process of its own, where
Triton compiles instead of interpreting.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shared_attn.kernels import external_launch, external_plain, external_triton

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Case(NamedTuple):
    B: int
    N: int
    C: int
    S: int
    dtype: torch.dtype
    weights: torch.dtype | None = None
    epilogue: bool = False  # residual, ReLU, gate, mask and bias, all of them
    architecture: int = 90
    shared_memory: int = 227 * 1024  # that a program may have


CASES = [
    Case(64, 1024, 256, 64, torch.bfloat16),
    Case(64, 1024, 256, 64, torch.bfloat16, epilogue=True),
    Case(64, 16384, 512, 64, torch.bfloat16, torch.float32, epilogue=True),
    Case(2, 1000, 130, 100, torch.bfloat16, epilogue=True),
    Case(2, 1000, 1500, 256, torch.bfloat16),
    Case(2, 9, 7, 3, torch.float16, torch.float32, epilogue=True),
    Case(64, 1024, 256, 64, torch.float32),
    Case(64, 1024, 256, 64, torch.float32, epilogue=True),
    Case(2, 1000, 130, 100, torch.float32, epilogue=True),
    Case(2, 1000, 2050, 256, torch.float32),
    *(
        Case(2, 1000, C, S, dtype, epilogue=True, architecture=86, shared_memory=99 * 1024)  # a desktop's GPU
        for C, S in ((256, 64), (130, 100), (512, 256))
        for dtype in (torch.bfloat16, torch.float32)
    ),
]


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Recorder:
    """Stands in for the module of kernels: keeps the launches instead of running them."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(external_triton, name)

        class Grid:
            def __getitem__(_, grid: tuple[int, ...]) -> Callable[..., None]:  # noqa: N805
                return lambda *arguments, **keywords: self.launches.append(Launch(kernel, arguments, keywords))

        return Grid()


def launches(case: Case) -> list[Launch]:
    """Those of a forward and a backward."""
    B, N, C, S, dtype, weights, epilogue, _, shared_memory = case
    x, grad = torch.empty(B, N, C, dtype=dtype, device="meta"), torch.empty(B, N, C, dtype=dtype, device="meta")
    keys, values = (torch.empty(shape, dtype=weights or dtype, device="meta") for shape in ((S, C), (C, S)))
    bias, gate = (values.new_empty(C), values.new_empty(1).to(dtype)) if epilogue else (None, None)
    mask = torch.empty(B, N, dtype=torch.bool, device="meta") if epilogue else None
    outputs = external_plain.empty_outputs(x, keys, values, gate, epilogue, dtype)
    recorder = Recorder()
    external_launch.kernels = recorder  # type: ignore[assignment]
    external_launch._shared_memory = lambda _: shared_memory
    external_launch.forward(outputs, x, keys, values, bias, gate, mask, 1e-9, epilogue, epilogue, dtype)
    y, logits, log_mass = outputs
    saved = (x, keys, values, bias, logits, log_mass, gate, mask)
    external_launch.backward(grad, y if epilogue else None, *saved, 1e-9, epilogue, epilogue)
    return recorder.launches


def source_of(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton's launcher would compile: 1 and None are constants, multiples of 16 are known as such."""
    names = launch.kernel.arg_names
    options = {name: launch.keywords[name] for name in OPTIONS if name in launch.keywords}
    given = dict(zip(names, launch.arguments, strict=False))
    constants = {name: value for name, value in launch.keywords.items() if name not in options}
    signature, attributes = {}, {}
    for position, name in enumerate(names):
        value = given.get(name)
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, value)
            continue
        signature[name] = TYPES[value.dtype] if isinstance(value, Tensor) else _scalar(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes), options


def _scalar(value: float) -> str:
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of stack: what did not fit into registers."""
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [reader, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: re.search(rf"{name}:(\d+)", report) for name in ("REG", "STACK")}
    return {name.lower(): int(number[1]) if number else -1 for name, number in found.items()}


def compiled(case: Case) -> Iterator[dict[str, Any]]:
    for launch in launches(case):
        source, options = source_of(launch)
        kernel = triton.compile(source, target=GPUTarget("cuda", case.architecture, 32), options=options)
        yield {
            "kernel": source.name,
            "case": str(case),
            "dtype": str(case.dtype).removeprefix("torch."),
            "cubin": len(kernel.asm["cubin"]),
            "warps": kernel.metadata.num_warps,
            "shared": kernel.metadata.shared,
            "allowed": case.shared_memory,
            "tensor_cores": "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"],
            **resources(kernel.asm["cubin"]),
        }


if __name__ == "__main__":
    chosen = [CASES[int(number)] for number in sys.argv[1:]] or CASES
    print(json.dumps([row for case in chosen for row in compiled(case)], indent=1))
