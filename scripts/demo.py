"""The whole suite on the embedded shapes: trains a small EAGAN, EAT as classifier and as segmenter, and draws them."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import command_line


@dataclass(frozen=True)
class Demo:
    out: Path = Path("runs/demo")
    """folder of the runs and pictures; the same command goes on where it was interrupted"""
    quick: bool = False
    """a few seconds of training each: shows that everything works, not what it can do"""
    fresh: bool = False
    """start over"""


# Metric of each run, and what two CPU cores reach with its preset.
EXPECTED = {
    "eagan": ("fd_lite0", "below 550"),
    "eat": ("overall_accuracy", "0.98"),
    "parts": ("instance_mean_iou", "0.68"),
}
NEXT = """Next, with real data:
  python scripts/train_gan.py eagan-cifar10-small --data cifar10 --out runs/eagan
  python scripts/prepare_data.py modelnet40 --out data
  python scripts/train_pointcloud.py eat-small --data data --out runs/eat
  python scripts/segment.py YOUR_MESH.off --weights {out}/parts --out out"""


def train_all(demo: Demo) -> None:
    """The three runs, each in its folder."""
    import gan.presets
    import gan.training
    import pointcloud.presets
    import pointcloud.training

    eagan = replace(gan.presets.PRESETS["eagan-shapes-small"], out=demo.out / "eagan", fresh=demo.fresh)
    eat, parts = (
        replace(pointcloud.presets.PRESETS[name], out=demo.out / folder, fresh=demo.fresh)
        for name, folder in (("eat-shapes-small", "eat"), ("eat-shapes-parts-small", "parts"))
    )
    if demo.quick:
        eagan = replace(eagan, images=256, warm_up=256, evaluation_samples=64, evaluation_references=64)
        short = {"epochs": 1, "warmup_epochs": 0.1, "num_points": 256, "norm_clouds": 64}
        eat, parts = replace(eat, **short), replace(parts, **short)
    print("1 of 3: EAGAN learns to draw the shapes, by class")
    gan.training.train(eagan)
    print("2 of 3: EAT learns to classify their point clouds")
    pointcloud.training.train(eat)
    print("3 of 3: EAT learns to segment them into parts")
    pointcloud.training.train(parts)


def run_demo(demo: Demo) -> None:
    start = time.monotonic()
    train_all(demo)
    from pointcloud.gallery import draw_test_segmentations

    shutil.copy(max((demo.out / "eagan" / "samples").glob("*.png")), demo.out / "samples.png")
    shutil.copy(demo.out / "eat" / "confusion.png", demo.out / "confusion.png")
    draw_test_segmentations(demo.out / "parts", demo.out / "segmented")
    print(f"\n{'run':8}{'metric':28}{'reached':>10}  {'expected':12}{'minutes':>8}")
    for name, (metric, expected) in EXPECTED.items():
        record = json.loads((demo.out / name / "record.json").read_text(encoding="utf-8"))
        full_name, value = next(item for item in record["metrics"].items() if item[0].startswith(metric))
        print(f"{name:8}{full_name:28}{value:10.3f}  {expected:12}{record['seconds'] / 60:8.1f}")
    pictures = " ".join(f"{demo.out}/{name}" for name in ("samples.png", "confusion.png", "segmented.png .html"))
    print(f"\nPictures: {pictures}\n{NEXT.format(out=demo.out)}\n({(time.monotonic() - start) / 60:.1f} minutes)")


if __name__ == "__main__":
    options = command_line.parse(Demo, description=__doc__ or "")
    command_line.run(lambda: run_demo(options))
