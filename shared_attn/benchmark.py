"""Wall-clock time of the variants, and of external attention's block against the form the paper's code has.

Competitors take turns in one process, so that their ratio means something on a machine that is busy with other work.

Legend: B batch, N tokens, C channels, S memory slots, H W grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.complexity import attention_cost
from shared_attn.external import ExternalAttentionBlock
from shared_attn.feature_map import feature_map_to_tokens
from shared_attn.memory import measure_peak_bytes
from shared_attn.reference import load_reference

__all__ = ["BlockTiming", "PaperBlock", "VariantTiming", "time_block", "time_in_turns", "time_variants"]


@dataclass(frozen=True)
class VariantTiming:
    """One variant at one size; times and memory are None where it was skipped for its cost.

    `peak_mb` is the most memory (MB = 1e6 bytes) of one forward + backward, see `memory.measure_peak_bytes`.
    """

    name: str
    dim: int
    tokens: int
    batch: int
    parameters: int
    multiply_adds: int
    forward_ms: float | None = None
    training_ms: float | None = None
    peak_mb: float | None = None

    HEAD: ClassVar[str] = (
        f"{'attention':20}{'channels':>9}{'tokens':>8}{'parameters':>12}{'G mult-adds':>13}"
        f"{'forward':>10}{'+ backward':>12}{'peak':>10}  ms, MB"
    )

    def __str__(self) -> str:
        """A line of the table under HEAD."""
        measured = (self.forward_ms, self.training_ms, self.peak_mb)
        forward, training, peak = (f"{value:.2f}" if value is not None else "skipped" for value in measured)
        cost = f"{self.parameters:12,}{self.multiply_adds / 1e9:13.3f}"
        return f"{self.name:20}{self.dim:9}{self.tokens:8}{cost}{forward:>10}{training:>12}{peak:>10}"


@dataclass(frozen=True)
class BlockTiming:
    """Median times of the block in milliseconds: the paper's form on (B, C, H, W), the folded one on (B, N, C) tokens,
    and the folded one on (B, C, H, W) maps in the paper's memory layout, both conversions included.
    """

    paper_ms: float
    folded_ms: float
    folded_from_map_ms: float
    largest_difference: float

    @property
    def ratio(self) -> float:
        return self.paper_ms / self.folded_ms

    @property
    def ratio_from_map(self) -> float:
        return self.paper_ms / self.folded_from_map_ms

    def __str__(self) -> str:
        from_map = f"on channels-first maps {self.folded_from_map_ms:.1f}, {self.ratio_from_map:.1f} times"
        return f"{self.paper_ms:8.1f} ->{self.folded_ms:8.1f}, {self.ratio:.1f} times faster ({from_map})"


class PaperBlock(nn.Module):
    """External attention's block as the paper draws it and its users run it: channels first, 1 x 1 convolutions,
    softmax over the pixels, L1 over the slots. Parameter names as in the published weights.
    """

    def __init__(self, channels: int, memory_size: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.linear_0 = nn.Conv1d(channels, memory_size, 1, bias=False)
        self.linear_1 = nn.Conv1d(memory_size, channels, 1, bias=False)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        query = self.conv1(x).view(B, C, H * W)
        attention = F.softmax(self.linear_0(query), dim=-1)  # (B, S, N)
        attention = attention / (1e-9 + attention.sum(dim=1, keepdim=True))
        y = self.conv2(self.linear_1(attention).view(B, C, H, W))
        return F.relu(x + y)


def time_variants(
    names: Sequence[str],
    dims: Sequence[int],
    sides: Sequence[int],
    *,
    batch: int = 1,
    repeats: int = 5,
    limit: float = float("inf"),
    dtype: torch.dtype = torch.float32,
    device: torch.device,
) -> Iterator[VariantTiming]:
    """Times each variant on square grids, forward in eval mode and forward + backward in training mode.

    Args:
        names: of the variants; dims: channels C; sides: H = W of the grids.
        limit: a variant with more multiply-adds a forward than this is listed with its cost but not run.
        dtype: of the weights and the tokens.

    Raises:
        ValueError: at once, for an unknown name or channels that a variant cannot take.
    """
    sizes = [(name, dim, side) for dim in dims for side in sides for name in names]
    costs = [attention_cost(name, dim, (side, side)) for name, dim, side in sizes]

    def measure() -> Iterator[VariantTiming]:
        for (name, dim, side), cost in zip(sizes, costs, strict=True):
            row = VariantTiming(name, dim, side * side, batch, cost.parameters, batch * cost.multiply_adds)
            if row.multiply_adds <= limit:
                attention = create_attention(name, dim).to(device, dtype)
                x = torch.randn(batch, side * side, dim, device=device, dtype=dtype)
                forward_ms = _median_ms(_forward(attention.eval(), x, (side, side)), repeats, device)
                step = _training_step(attention.train(), x, (side, side))
                training_ms = _median_ms(step, repeats, device)
                peak_mb = measure_peak_bytes(step, device) / 1e6
                row = replace(row, forward_ms=forward_ms, training_ms=training_ms, peak_mb=peak_mb)
            yield row

    return measure()


def time_block(
    dim: int, side: int, *, batch: int = 1, repeats: int = 5, training: bool, device: torch.device
) -> BlockTiming:
    """Times external attention's block, paper's form against folded, with the same weights and input.

    Args:
        training: forward + backward in training mode instead of forward in eval mode.
    """
    paper = PaperBlock(dim)
    weights = {name: value.clone() for name, value in paper.state_dict().items()}
    folded = load_reference("eanet.external", weights, channels=dim).to(device).train(training)
    assert isinstance(folded, ExternalAttentionBlock)
    paper = paper.to(device).train(training)
    image = torch.randn(batch, dim, side, side, device=device)
    tokens, grid = feature_map_to_tokens(image).contiguous(), (side, side)

    def from_map(x: Tensor) -> Tensor:
        y: Tensor = folded(feature_map_to_tokens(x), grid)
        return y.transpose(1, 2).view_as(x)  # laid out as x is, so no copy

    with torch.no_grad():
        difference = (paper(image) - from_map(image)).abs().max().item()
    run = _training_step if training else _forward
    medians = time_in_turns(
        {"paper": run(paper, image), "folded": run(folded, tokens), "from_map": run(from_map, image)}, repeats, device
    )
    return BlockTiming(medians["paper"], medians["folded"], medians["from_map"], difference)


def time_in_turns(
    competitors: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each function, after one warm-up; every round calls each of them once."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for repeat in range(repeats + 1):
        for name, function in competitors.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if repeat > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _median_ms(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    return time_in_turns({"it": function}, repeats, device)["it"]


def _forward(module: Callable[..., Tensor], *inputs: object) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            module(*inputs)

    return run


def _training_step(module: Callable[..., Tensor], x: Tensor, *others: object) -> Callable[[], object]:
    """Forward and backward with gradients of the parameters and of the input, as inside a network."""
    x = x.detach().requires_grad_()
    grad = torch.randn_like(x)

    def run() -> None:
        x.grad = None
        if isinstance(module, nn.Module):
            module.zero_grad(set_to_none=True)
        torch.autograd.backward(module(x, *others), grad)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
