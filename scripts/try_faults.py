"""Kill tiny trainings on the embedded shapes, fill their disks, take their data away; record what they outlive."""

from __future__ import annotations

import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import command_line

GAN = """train_gan.py eagan-shapes-small --batch-size 4 --group-size 2 --warm-up 8 --generator-width 2
    --discriminator-width 4 --features none --log-every 1 --images 32 --evaluate-every 16 --checkpoint-every 8
    --stream always --workers 1 --device cpu"""
POINTS = """train_pointcloud.py eat-shapes-small --batch-size 4 --num-points 32 --embed-channels 8 8 --num-layers 2
    --neighbour-channels 12 16 --num-centres 16 8 --num-neighbours 4 --fuse-channels 24 --head-channels 16 12
    --norm-clouds 8 --epochs 4 --evaluate-epochs 2 --validation 0.25 --device cpu"""


@dataclass(frozen=True)
class Faults:
    kills: int = 50
    """SIGKILLs at random moments, half of them for each training"""
    groups: tuple[str, ...] = ("random", "worst", "disk", "loss", "signals")
    """what to try: random and worst moments of kills, full disks, lost data and memory, signals and clocks"""
    seed: int = 0
    """of the random moments"""
    json: Path | None = None
    """file for the record"""


def call_script(command: str, data: Path) -> Callable[[Path], None]:
    """A function that trains in a folder as the script does."""

    def train(out: Path) -> None:
        script, *flags = command.split()
        sys.argv = [script, *flags, "--data", str(data), "--out", str(out)]
        runpy.run_path(str(Path(__file__).with_name(script)), run_name="__main__")

    return train


def try_faults(options: Faults) -> None:
    from gan import sampling
    from shared_attn.runtime.faults.trials import Trials, warm_up
    from shared_attn.runtime.records import write_benchmark
    from shared_attn.shapes.excerpt import write_clouds, write_pictures

    start, rows = time.monotonic(), []
    warm_up("gan.training", "pointcloud.training", "pointcloud.pictures")
    sampling.STATISTICS_BATCHES = 2  # of batch norm: what is compared are runs, not images
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, command, write in (("gan", GAN, write_pictures), ("points", POINTS, write_clouds)):
            data = write(folder / f"{name}-data")
            trials = Trials(name, call_script(command, data), data, folder)
            trials.try_groups(options.groups, kills=options.kills // 2, seed=options.seed)
            rows += trials.rows
    for row in rows:
        print(f"{row.training}: {row.fault}: {row.survived} of {row.tried} survived", *row.problems, sep="\n  ")
    if options.json:
        metrics = {"tried": sum(row.tried for row in rows), "survived": sum(row.survived for row in rows)}
        tables, seconds = {"faults": [asdict(row) for row in rows]}, time.monotonic() - start
        how = {"seconds": seconds, "device": "cpu", "data": "shapes"}
        write_benchmark(options.json, "faults tried on trainings", options, metrics, tables, **how)
    if any(row.problems for row in rows):
        raise ValueError("a training did not outlive what was done to it, see above")


if __name__ == "__main__":
    chosen = command_line.parse(Faults, description=__doc__ or "")
    command_line.run(lambda: try_faults(chosen))
