"""How near the kernels of external attention come to what the memory allows, and the fused block to the paper's.

The floor of an operation is its input read once and its output written once at the rate that a copy on the same device
reaches; `expected_mb` is what the kernels move by `shared_attn.kernels.traffic`. Each function is captured in a CUDA
graph, so that launching it costs nothing, and runs on a cold cache. Without a GPU the bytes stand there and no times.

Legend: B batch, N tokens, C channels, S memory slots.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from shared_attn.benchmark import time_in_turns
from shared_attn.external import ExternalAttention, ExternalAttentionBlock
from shared_attn.head_to_head import PaperBlock
from shared_attn.kernels.tiling import Tiling, candidates, overridden
from shared_attn.kernels.traffic import expected_bytes
from shared_attn.reference import load_reference

__all__ = ["SIZES", "Compiler", "KernelTiming", "Size", "time_kernels", "tune"]


class Size(NamedTuple):
    """Of a timing; N is the square of `side`."""

    batch: int
    side: int
    channels: int
    slots: int = 64


SIZES = (Size(64, 32, 256), Size(64, 128, 512))
Compiler = Callable[[nn.Module], Any]
_CACHE = 2**28  # bytes, more than any GPU's cache


@dataclass(frozen=True)
class KernelTiming:
    """One function at one size; times, and what follows from them, are None where they were not measured.

    `what` is "attention", the two memories alone, or "block", the paper's whole block with its maps folded and batch
    norm, residual and ReLU in the epilogue; `mode` is "forward", "forward + backward" (of the block with the norm in
    eval mode) or "training" (the norm by batch statistics, which the kernels do not compute).
    """

    what: str
    mode: str
    batch: int
    tokens: int
    channels: int
    slots: int
    dtype: str
    floor_mb: float | None = None
    expected_mb: float | None = None
    copy_gb_s: float | None = None
    floor_ms: float | None = None
    measured_ms: float | None = None
    floor_fraction: float | None = None
    paper_ms: float | None = None
    """The paper's block under torch.compile, in the same mode."""
    speedup: float | None = None

    HEAD: ClassVar[str] = (
        f"{'kernels':30}{'size':20}{'moved MB':>12}{'floor MB':>12}{'ms':>12}{'% of floor':>12}{'x paper':>12}"
    )

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured, by names that hold what, mode and tokens."""
        name = f"{self.what}_{self.mode.replace(' + ', '_')}_{self.tokens}"
        found = {"floor_fraction": self.floor_fraction, "speedup": self.speedup}
        return {f"kernels_{name}_{key}": value for key, value in found.items() if value is not None}

    def __str__(self) -> str:
        """A line of the table under HEAD."""
        size = f"{self.batch} x {self.tokens} x {self.channels}"
        percent = None if self.floor_fraction is None else 100 * self.floor_fraction
        cells = [(f"{value:.0f}" if value is not None else "-") for value in (self.expected_mb, self.floor_mb)]
        cells.append(f"{self.measured_ms:.3f}" if self.measured_ms is not None else "unmeasured")
        cells += [f"{v:.1f}" if v is not None else "-" for v in (percent, self.speedup)]
        return f"{self.what + ', ' + self.mode:30}{size:20}" + "".join(f"{cell:>12}" for cell in cells)


def time_kernels(
    device: torch.device,
    *,
    sizes: Sequence[Size] = SIZES,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 20,
    measure: bool | None = None,
    compiler: Compiler | None = None,
) -> Iterator[KernelTiming]:
    """Times external attention and its block at each size.

    Args:
        measure: by default only on a CUDA device; elsewhere the plain twins would be timed.
        compiler: what the blocks are compiled with, torch.compile by default.
    """
    compiler = _compile if compiler is None else compiler
    measure = device.type == "cuda" if measure is None else measure
    copy = _copy_rate(device, max(B * side**2 * C for B, side, C, _ in sizes), dtype, repeats) if measure else None
    modes = ("forward", "forward + backward")
    for size in sizes:
        for what, mode in (*(("attention", m) for m in modes), *(("block", m) for m in (*modes, "training"))):
            yield _time(what, mode, size, dtype, device, repeats, copy, compiler)


def tune(
    device: torch.device, size: Size, *, dtype: torch.dtype = torch.bfloat16, repeats: int = 20
) -> Iterator[tuple[str, Tiling | None, float | None]]:
    """Kernel, tiling (None is the table's), milliseconds of attention in the mode that runs it (None: it did not fit).

    Takes minutes a size, because each tiling is compiled.
    """
    for kernel in ("forward", "slot_gradients", "token_gradients"):
        mode = "forward" if kernel == "forward" else "forward + backward"
        step, _ = _competitors("attention", mode, size, dtype, device, _compile)
        yield kernel, None, _median_ms(step, device, repeats)
        for choice in candidates(kernel, size.slots, dtype):
            with overridden(kernel, choice):
                yield kernel, choice, _median_ms(step, device, repeats)


def _time(
    what: str,
    mode: str,
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    copy: float | None,
    compiler: Compiler,
) -> KernelTiming:
    B, side, C, S = size
    found: dict[str, float | None] = {}
    if mode != "training":
        fused = what == "block"
        traffic = expected_bytes(B, side**2, C, S, dtype, residual=fused, relu=fused)
        backward = mode != "forward"
        found["floor_mb"] = (traffic.floor + backward * traffic.backward_floor) / 1e6
        found["expected_mb"] = (traffic.forward + backward * traffic.backward) / 1e6
    if copy is not None:
        step, paper_step = _competitors(what, mode, size, dtype, device, compiler)
        measured = found["measured_ms"] = _median_ms(step, device, repeats)
        paper = found["paper_ms"] = None if paper_step is None else _median_ms(paper_step, device, repeats)
        floor, found["copy_gb_s"] = found.get("floor_mb"), copy
        if floor is not None:
            found["floor_ms"] = floor / copy  # MB by GB/s
            found["floor_fraction"] = None if measured is None else floor / copy / measured
        found["speedup"] = None if measured is None or paper is None else paper / measured
    return KernelTiming(what, mode, B, side**2, C, S, str(dtype).removeprefix("torch."), **found)


def _competitors(
    what: str,
    mode: str,
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    compiler: Compiler,
) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """The function to time, and for the block the paper's: same weights, its own layout (B, C, H, W)."""
    B, side, C, S = size
    backward, training = mode != "forward", mode == "training"
    tokens = torch.randn(B, side**2, C, device=device, dtype=dtype)
    if what == "attention":
        attention = ExternalAttention(C, S).to(device, dtype)
        return _step(attention, attention, tokens, backward), None
    paper = PaperBlock(C, S)
    weights = {name: value.clone() for name, value in paper.state_dict().items()}
    folded = load_reference("eanet.external", weights, channels=C, memory_size=S)
    assert isinstance(folded, ExternalAttentionBlock)
    paper, folded = (block.to(device, dtype).train(training) for block in (paper, folded))  # type: ignore[assignment]
    image = tokens.mT.reshape(B, C, side, side).contiguous()
    return (
        _step(compiler(folded), folded, tokens, backward),
        _step(compiler(paper), paper, image, backward),
    )


def _compile(module: nn.Module) -> Any:
    """For one size: torch.compile would make its second size's kernels general, and slower."""
    torch._dynamo.reset()
    return torch.compile(module, dynamic=False)


def _step(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, backward: bool) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return function(x)

    if not backward:
        return forward
    x = x.requires_grad_()
    grad = torch.randn_like(x)
    leaves = (x, *module.parameters())

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(x), leaves, grad, allow_unused=True)

    return forward_and_backward


def _copy_rate(device: torch.device, elements: int, dtype: torch.dtype, repeats: int) -> float:
    """GB/s that a copy reads and writes."""
    source = torch.empty(elements, dtype=dtype, device=device).zero_()
    target = torch.empty_like(source)
    milliseconds = _median_ms(lambda: target.copy_(source), device, repeats)
    return math.nan if milliseconds is None else 2 * source.nbytes / milliseconds / 1e6


def _median_ms(function: Callable[[], object], device: torch.device, repeats: int) -> float | None:
    """Median milliseconds of the device; None, with a warning that says why, where the function does not run."""
    try:
        if device.type != "cuda":
            return time_in_turns({"it": function}, repeats, device)["it"]
        return _median_of_events(_captured(function), device, repeats)
    except (RuntimeError, _resource_error()) as error:  # memory, a backend of torch.compile, shared memory
        warnings.warn(f"not measured: {error}", stacklevel=2)
        return None


def _median_of_events(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    elsewhere = torch.empty(_CACHE, dtype=torch.uint8, device=device)
    events = []
    for _ in range(repeats):
        elsewhere.zero_()  # what the last round left in the cache is gone, and this round's launch queues up meanwhile
        start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        function()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return float(statistics.median(start.elapsed_time(end) for start, end in events))


def _captured(function: Callable[[], object]) -> Callable[[], object]:
    """The function's kernels as one CUDA graph, after three calls that compile what there is to compile."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError as error:
        warnings.warn(f"timed with its launches, because it cannot be captured: {error}", stacklevel=2)
        return function
    return graph.replay


def _resource_error() -> type[Exception]:
    try:
        from triton.runtime.errors import OutOfResources
    except ImportError:
        return RuntimeError
    return OutOfResources  # type: ignore[no-any-return]
