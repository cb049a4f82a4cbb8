"""Time a training step of PCT and EAT against the original's form: same weights, same batch, one process.

Also prints clouds a second, the share of each part of a step, peak memory, and the distance to the time of the matrix
products alone. With --original, PCT_Pytorch's own code from a checkout is timed beside them.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from command_line import parse, run


@dataclass(frozen=True)
class Options:
    batch_size: int = 32
    """Clouds a step."""
    num_points: int = 1024
    """Points a cloud."""
    repeats: int = 3
    """Timed steps of each form, taken in turns; the medians count."""
    threads: int = 0
    """CPU threads; 0: as many as torch takes."""
    precision: Literal["fp32", "bf16", "both"] = "fp32"
    """Of this project's form; the originals' is always fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    compile: bool = False
    """Time this project's form through torch.compile, as train_pointcloud.py --compile trains."""
    original: Path | None = None
    """A checkout of Strawberry-Eat-Mango/PCT_Pytorch, to time too. Runs the Python code in it."""
    json: Path | None = None
    """Write the measurements to this file as one JSON object."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    started = time.perf_counter()
    from pointcloud.benchmark import StepTiming, time_training_steps
    from shared_attn.runtime.launch import create_fabric
    from shared_attn.runtime.records import write_benchmark

    device = create_fabric(options.device, "fp32").device
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    print(StepTiming.HEAD)
    for precision in ("fp32", "bf16") if options.precision == "both" else (options.precision,):
        for timing in time_training_steps(
            batch_size=options.batch_size,
            num_points=options.num_points,
            repeats=options.repeats,
            threads=options.threads,
            precision=precision,
            device=device,
            compiled=options.compile,
            original=options.original,
        ):
            print(timing, flush=True)
            rows.append(asdict(timing))
            metrics |= timing.metrics
    if options.json is not None:
        run_facts = {"seconds": time.perf_counter() - started, "device": device.type}
        write_benchmark(options.json, "training step", options, metrics, {"training_step": rows}, **run_facts)


if __name__ == "__main__":
    run(main)
