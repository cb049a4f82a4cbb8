"""Time training against the original's form: same weights, same batch, one process.

Of points a step of PCT and EAT; of a GAN an iteration of SAGAN on CIFAR-10, five discriminator steps and one of the
generator. Also prints each part's share, peak memory, and the distance to the time of the matrix products alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from command_line import parse, run


@dataclass(frozen=True)
class Options:
    model: Literal["points", "gan", "both"] = "both"
    """What to train."""
    batch_size: int = 32
    """Clouds a step."""
    num_points: int = 1024
    """Points a cloud."""
    images: int = 64
    """Real images a discriminator step, and as many generated ones."""
    width: int = 64
    """Width of the GAN's networks."""
    repeats: int = 3
    """Timed steps of each form, taken in turns; the medians count."""
    threads: int = 0
    """CPU threads; 0: as many as torch takes."""
    precision: Literal["fp32", "bf16", "both"] = "fp32"
    """Of this project's form; the originals' is always fp32. both leaves bf16 out where the device only imitates it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    compile: bool = False
    """Time this project's form through torch.compile, as the training scripts' --compile trains."""
    original: Path | None = None
    """A checkout of Strawberry-Eat-Mango/PCT_Pytorch, to time too. Runs the Python code in it."""
    studiogan: Path | None = None
    """A checkout of POSTECH-CVLab/PyTorch-StudioGAN, to time too. Runs the Python code in it."""
    json: Path | None = None
    """Write the measurements to this file as one JSON object."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    started = time.perf_counter()
    from gan import benchmark as gan_benchmark
    from gan.original import check_checkout
    from pointcloud import benchmark as point_benchmark
    from shared_attn.runtime.launch import create_fabric, list_precisions
    from shared_attn.runtime.records import write_benchmark
    from shared_attn.step_timing import print_timings

    check_checkout(options.studiogan)
    device = create_fabric(options.device, "fp32").device
    shared: dict[str, Any] = {"repeats": options.repeats, "threads": options.threads}
    points = {"batch_size": options.batch_size, "num_points": options.num_points, "original": options.original}
    images = {"batch_size": options.images, "width": options.width, "original": options.studiogan}
    families = {"points": (point_benchmark, shared | points), "gan": (gan_benchmark, shared | images)}
    chosen = {name: family for name, family in families.items() if options.model in (name, "both")}
    for benchmark, sizes in chosen.values():  # first of all, while freed memory still goes back to the system
        if sizes["original"] is not None and device.type == "cpu":
            sizes["shipped_seconds"] = benchmark.time_original(**sizes)
    metrics, tables = dict[str, float](), dict[str, list[dict[str, Any]]]()
    precisions = list_precisions(options.precision, device)
    for name, (benchmark, sizes) in chosen.items():
        sizes |= {"device": device, "compiled": options.compile}
        timings = print_timings(timing for p in precisions for timing in benchmark.time_steps(**sizes, precision=p))
        tables[f"training_{'step' if name == 'points' else 'iteration'}"] = [timing.row for timing in timings]
        metrics |= {key: value for timing in timings for key, value in timing.metrics.items()}
    if options.json is not None:
        seconds, name = time.perf_counter() - started, f"training step, {options.model}"
        write_benchmark(options.json, name, options, metrics, tables, seconds=seconds, device=device.type)


if __name__ == "__main__":
    run(main)
