"""Times every attention variant, and external attention's folded block against the form the paper's code has."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import command_line


@dataclass(frozen=True)
class Benchmark:
    channels: int = 512
    """Channels of the tokens."""
    batch: int = 1
    """Samples at a time."""
    sides: tuple[int, ...] = (32, 64, 128)
    """Heights (= widths) of the grids; the block is timed at the last."""
    attention: tuple[str, ...] = ()
    """Variants to time; all of them when none is named."""
    repeats: int = 5
    """Timed calls, after one warm-up; medians are reported."""
    limit: float = 30
    """Skip a variant at a size where a forward takes more than this many G multiply-adds."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    json: Path | None = None
    """Write everything measured into this file as one object."""


def main() -> None:
    options = command_line.parse(Benchmark, description=__doc__)
    for flag in ("channels", "batch", "repeats", "threads", "sides"):
        value = getattr(options, flag)
        if value is not None and min(value if flag == "sides" else (value,), default=0) < 1:
            raise ValueError(f"--{flag}: expected a number of 1 or more, got {value}")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder does not exist")
    import torch

    from shared_attn import list_attentions
    from shared_attn.benchmark import VariantTiming, time_block, time_variants

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is available here")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    side = options.sides[-1]
    common = {"batch": options.batch, "repeats": options.repeats, "device": device}
    names = options.attention or list_attentions()
    timings = time_variants(names, options.channels, options.sides, limit=1e9 * options.limit, **common)

    shape = f"{options.batch} x {options.channels} x {side} x {side}"
    print(f"external attention's block at {shape}, ms on {device}: paper's form against folded")
    blocks = {}
    for mode, training in (("forward", False), ("forward + backward", True)):
        block = time_block(options.channels, side, training=training, **common)
        blocks[mode] = {**asdict(block), "ratio": block.ratio, "ratio_from_map": block.ratio_from_map}
        print(f"{mode:20}{block}", flush=True)

    print(f"\n{VariantTiming.HEAD}")
    rows = []
    for row in timings:
        print(row, flush=True)
        rows.append(asdict(row))
    if options.json is not None:
        facts = {"torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}
        config = {key: value for key, value in asdict(options).items() if key not in ("json", "device", "threads")}
        options.json.write_text(json.dumps({**config, **facts, "block": blocks, "variants": rows}, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main)
