"""Times every attention variant, external attention's folded block against the paper's form, and its GPU kernels."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import command_line


@dataclass(frozen=True)
class Benchmark:
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of the tokens; the block is timed at the last."""
    batch: int = 1
    """Samples at a time."""
    sides: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Heights (= widths) of the grids: 256 to 65,536 tokens."""
    block_side: int = 128
    """Height (= width) of the grid at which the block is timed."""
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
    for flag in ("channels", "batch", "repeats", "threads", "sides", "block_side"):
        value = getattr(options, flag)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: expected a number of 1 or more, got {value}")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder does not exist")
    import torch

    from shared_attn import list_attentions
    from shared_attn.benchmark import VariantTiming, time_block, time_variants
    from shared_attn.kernels.benchmark import time_kernels
    from shared_attn.published_costs import compare_costs
    from shared_attn.runtime.records import write_benchmark

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is available here")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    common = {"batch": options.batch, "repeats": options.repeats, "device": device}
    sizes = (options.attention or list_attentions(), options.channels, options.sides)
    timings = time_variants(*sizes, limit=1e9 * options.limit, dtype=dtype, **common)
    channels, side, tables, metrics, started = options.channels[-1], options.block_side, {}, {}, time.perf_counter()
    print(f"block at {options.batch} x {channels} x {side} x {side}, ms on {device}: paper's form -> folded")
    for mode, training in (("forward", False), ("forward + backward", True)):
        block = time_block(channels, side, training=training, **common)
        tables.setdefault("block", []).append({"mode": mode, **asdict(block)})
        metrics[f"block_{mode.replace(' + ', '_')}_speedup"] = block.ratio
        print(f"{mode:20}{block}", flush=True)
    print(f"\n{VariantTiming.HEAD}")
    for name, rows in (("variants", timings), ("kernels", time_kernels(device))):
        for row in rows:
            print(row, flush=True)
            tables.setdefault(name, []).append(asdict(row))
            metrics |= getattr(row, "metrics", {})
    if options.json is not None:
        tables["published_costs"], seconds = [asdict(row) for row in compare_costs()], time.perf_counter() - started
        about = (options.json, "attention variants", options)
        write_benchmark(*about, metrics, tables, seconds=seconds, device=device.type)


if __name__ == "__main__":
    command_line.run(main)
