"""Times every attention variant, some of them against the originals with the same weights, and the GPU kernels."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import command_line


@dataclass(frozen=True)
class Benchmark:
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of the tokens; originals are timed at the last."""
    batch: int = 1
    """Samples at a time."""
    sides: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Heights (= widths) of the grids: 256 to 65,536 tokens."""
    original_side: int = 128
    """Height (= width) of the grid at which originals are timed."""
    attention: tuple[str, ...] = ()
    """Variants to time; all of them when none is named."""
    repeats: int = 3
    """Timed calls, after one warm-up; medians are reported."""
    limit: float = 30
    """Skip a variant where a forward takes more than this many G multiply-adds."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and tokens."""
    threads: int | None = None
    """CPU threads; by default torch's choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    json: Path | None = None
    """Write everything measured into this file, as a record that results/ can hold."""


def main() -> None:
    options = command_line.parse(Benchmark, description=__doc__)
    command_line.check_positive(options, "channels", "batch", "repeats", "threads", "sides", "original_side")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder does not exist")
    started = time.perf_counter()
    import torch

    from shared_attn import list_attentions
    from shared_attn.benchmark import time_variants
    from shared_attn.head_to_head import compare_with_originals
    from shared_attn.kernels.benchmark import time_kernels
    from shared_attn.published_costs import compare_costs
    from shared_attn.runtime.launch import create_fabric
    from shared_attn.runtime.records import write_benchmark

    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = create_fabric(options.device, "fp32").device
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    common = {"batch": options.batch, "repeats": options.repeats, "device": device}
    sizes = (options.attention or list_attentions(), options.channels, options.sides)
    parts: dict[str, Iterable[Any]] = {
        "variants": time_variants(*sizes, limit=1e9 * options.limit, dtype=dtype, **common),
        "head_to_head": compare_with_originals(options.channels[-1], options.original_side, **common),
        "published_costs": compare_costs(),
        "kernels": time_kernels(device),
    }
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    metrics: dict[str, float] = {}
    for name, rows in parts.items():
        for row in rows:
            print(row if tables[name] else f"\n{row.HEAD}\n{row}", flush=True)
            tables[name].append(asdict(row))
            metrics |= getattr(row, "metrics", {})
    if options.json is not None:
        run = {"seconds": time.perf_counter() - started, "device": device.type}
        write_benchmark(options.json, "attention variants", options, metrics, tables, **run)


if __name__ == "__main__":
    command_line.run(main)
