"""Kills tiny trainings on the embedded shapes, fills their disks, takes their data away; records what they outlived."""

from __future__ import annotations

import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import command_line

GAN = """train_gan.py eagan-shapes-small --batch-size 4 --generator-width 2 --discriminator-width 4 --features none
    --log-every 1 --images 48 --evaluate-every 24 --checkpoint-every 8 --stream always --workers 1 --device cpu"""
POINTS = """train_pointcloud.py eat-shapes-small --batch-size 4 --num-points 32 --embed-channels 8 8 --num-layers 2
    --neighbour-channels 12 16 --num-centres 16 8 --num-neighbours 4 --fuse-channels 24 --head-channels 16 12
    --norm-clouds 8 --epochs 4 --evaluate-epochs 2 --validation 0.25 --dataset faults --device cpu"""


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


def write_data(folder: Path) -> None:
    """A few of the embedded shapes of three classes: pictures in folders, and clouds as .npz files."""
    import numpy as np
    from torchvision.io import write_png

    from shared_attn.shapes import CLASS_NAMES, load_clouds, load_images

    shown = load_images("train", per_class=4)
    for number, (image, label) in enumerate(zip(shown.images, shown.label.tolist(), strict=True)):
        if label < 3:
            (folder / "gan" / CLASS_NAMES[label]).mkdir(parents=True, exist_ok=True)
            write_png(image, str(folder / "gan" / CLASS_NAMES[label] / f"{number}.png"))
    (folder / "points").mkdir()
    for split in ("train", "test"):
        clouds = load_clouds(split, per_class=4, num_points=64)
        some = clouds.label < 3
        arrays = {"points": clouds.points[some].numpy(), "label": clouds.label[some].numpy()}
        described = {"class_names": np.array(CLASS_NAMES[:3]), "scale": np.float32(1 / 4096)}
        np.savez(folder / "points" / f"faults_64_{split}.npz", **arrays, **described)


def call_script(command: str, data: Path) -> Callable[[Path], None]:
    def train(out: Path) -> None:
        script, *flags = command.split()
        sys.argv = [script, *flags, "--data", str(data), "--out", str(out)]
        runpy.run_path(str(Path(__file__).with_name(script)), run_name="__main__")

    return train


def try_faults(options: Faults) -> None:
    from shared_attn.runtime.faults.trials import Trials, warm_up
    from shared_attn.runtime.records import write_benchmark

    start, rows = time.monotonic(), []
    warm_up("gan.training", "pointcloud.training", "pointcloud.pictures")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder)
        for name, command in (("gan", GAN), ("points", POINTS)):
            trials = Trials(name, call_script(command, folder / name), folder / name, folder)
            trials.try_groups(options.groups, kills=options.kills // 2, seed=options.seed)
            rows += trials.rows
    for row in rows:
        print(f"{row.training}: {row.fault}: {row.survived} of {row.tried} survived", *row.problems, sep="\n  ")
    if options.json:
        table = [asdict(row) for row in rows]
        metrics = {"tried": sum(row.tried for row in rows), "survived": sum(row.survived for row in rows)}
        seconds = time.monotonic() - start
        write_benchmark(
            options.json, "faults outlived", options, metrics, {"faults": table}, seconds=seconds, device="cpu"
        )
    if any(row.problems for row in rows):
        raise ValueError("a training did not outlive what was done to it; see above")


if __name__ == "__main__":
    chosen = command_line.parse(Faults, description=__doc__ or "")
    command_line.run(lambda: try_faults(chosen))
