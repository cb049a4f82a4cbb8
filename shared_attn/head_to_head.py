"""Modules of this project against those they replace: same weights, same input, in turns in one process.

Legend: B batch, N tokens, C channels, S memory slots, H W grid.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_attn import create_attention
from shared_attn.benchmark import forward_pass, time_in_turns, training_step
from shared_attn.feature_map import feature_map_to_tokens
from shared_attn.reference import load_reference

__all__ = ["HeadToHead", "PaperBlock", "compare_with_originals"]

Mode = Literal["forward", "forward + backward"]


Measure = Callable[[Mapping[str, Callable[[], object]]], dict[str, float]]
_MODES: dict[Mode, Callable[..., Callable[[], object]]] = {
    "forward": forward_pass,
    "forward + backward": training_step,
}


@dataclass(frozen=True)
class HeadToHead:
    """Median milliseconds of both; `largest_difference` of their outputs, None where they are different functions."""

    key: str
    ours: str
    original: str
    mode: Mode
    original_ms: float
    ours_ms: float
    largest_difference: float | None = None

    HEAD: ClassVar[str] = f"{'ours':38}{'original':18}{'mode':20}{'original':>10}{'ours':>10}{'ratio':>8}  ms"

    @property
    def ratio(self) -> float:
        return self.original_ms / self.ours_ms

    @property
    def metrics(self) -> dict[str, float]:
        """The ratio under its name in a record."""
        return {f"{self.key}_{'forward' if self.mode == 'forward' else 'training'}_speedup": self.ratio}

    def __str__(self) -> str:
        """A line of the table under HEAD."""
        times = f"{self.original_ms:10.1f}{self.ours_ms:10.1f}{self.ratio:8.1f}"
        return f"{self.ours:38}{self.original:18}{self.mode:20}{times}"


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


def compare_with_originals(
    dim: int, side: int, *, batch: int = 1, repeats: int = 5, device: torch.device
) -> Iterator[HeadToHead]:
    """External attention's folded block against the paper's and against self-attention; XCA against timm's.

    Where timm is not installed, its rows are missing.

    Args:
        dim: channels C; side: H = W of the grid.
    """
    image = torch.randn(batch, dim, side, side, device=device)
    measure = partial(time_in_turns, repeats=repeats, device=device)
    yield from _blocks(image, measure)
    yield from _cross_covariance(feature_map_to_tokens(image).contiguous(), measure)
    yield from _self_attention(feature_map_to_tokens(image).contiguous(), measure)


def _blocks(image: Tensor, measure: Measure) -> Iterator[HeadToHead]:
    """On (B, N, C) tokens, and on maps in the paper's memory layout with both conversions included."""
    paper = PaperBlock(image.shape[1]).to(image.device)
    folded = _folded_block(paper)
    tokens, grid = feature_map_to_tokens(image).contiguous(), tuple(image.shape[2:])

    def from_map(x: Tensor) -> Tensor:
        y: Tensor = folded(feature_map_to_tokens(x), grid)
        return y.transpose(1, 2).view_as(x)  # laid out as x is, so no copy

    for mode, run in _MODES.items():
        for module in (paper, folded):
            module.train(mode == "forward + backward")
        difference = _largest_difference(paper(image), from_map(image))
        medians = measure(
            {"paper": run(paper, image), "tokens": run(folded, tokens, grid), "maps": run(from_map, image)}
        )
        for layout in ("tokens", "maps"):
            key, label = f"block_on_{layout}", f"external attention's block, {layout}"
            yield HeadToHead(key, label, "paper's form", mode, medians["paper"], medians[layout], difference)


def _cross_covariance(x: Tensor, measure: Measure) -> Iterator[HeadToHead]:
    if importlib.util.find_spec("timm") is None:
        return
    from timm.models.xcit import XCA

    theirs = XCA(x.shape[2]).to(x.device)
    ours = load_reference("timm.xca", theirs.state_dict(), dim=x.shape[2]).to(x.device)
    for mode, run in _MODES.items():
        medians = measure({"theirs": run(theirs, x), "ours": run(ours, x)})
        difference = _largest_difference(theirs(x), ours(x))
        times = (medians["theirs"], medians["ours"])
        yield HeadToHead("cross_covariance", "cross_covariance", "timm's XCA", mode, *times, difference)


def _self_attention(x: Tensor, measure: Measure) -> Iterator[HeadToHead]:
    """Forward alone, by scaled_dot_product_attention: backward takes tens of seconds on a CPU."""
    theirs = create_attention("self", x.shape[2]).to(x.device).eval()
    ours = _folded_block(PaperBlock(x.shape[2])).to(x.device)
    medians = measure({"theirs": forward_pass(theirs, x), "ours": forward_pass(ours, x)})
    label, times = "external attention's block, tokens", (medians["theirs"], medians["ours"])
    yield HeadToHead("block_over_self_attention", label, "self-attention", "forward", *times)


def _folded_block(paper: PaperBlock) -> nn.Module:
    channels = paper.conv1.in_channels
    return load_reference("eanet.external", paper.state_dict(), channels=channels).to(paper.conv1.weight.device)


def _largest_difference(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()
