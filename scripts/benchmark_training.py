"""Time a training step of PCT and EAT against the original's unsplit form: same weights, same batch, one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of this project's form; the original's is always fp32."""
    json: Path | None = None
    """Write the measurements to this file as one JSON object."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    from pointcloud.benchmark import time_training_steps

    results = time_training_steps(
        batch_size=options.batch_size,
        num_points=options.num_points,
        repeats=options.repeats,
        threads=options.threads,
        precision=options.precision,
    )
    for name, result in results.items():
        print(
            f"{name}: {result['seconds']:.2f} s a step, unsplit {result['published_seconds']:.2f} s, "
            f"{result['speedup']:.2f} times faster; logits differ by {result['largest_difference']:.1e} of their spread"
        )
    if options.json is not None:
        from shared_attn.runtime.files import atomic_write
        from shared_attn.runtime.records import describe_machine

        report = {"precision": options.precision, "machine": describe_machine("cpu"), "training_step": results}
        with atomic_write(options.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    run(main)
