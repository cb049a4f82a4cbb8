"""A few of the embedded shapes as files, in layouts that both trainings read: for trials that must be quick."""

from __future__ import annotations

from pathlib import Path

from shared_attn.shapes.catalogue import CLASS_NAMES
from shared_attn.shapes.datasets import SCALE, load_clouds, load_images


def write_pictures(folder: Path, *, classes: int = 2, per_class: int = 6) -> Path:
    """CLASS/NUMBER.png, 32 x 32 pixels, of the first classes."""
    from torchvision.io import write_png

    shown = load_images("train", per_class=per_class)
    for number, (image, label) in enumerate(zip(shown.images, shown.label.tolist(), strict=True)):
        if label < classes:
            path = folder / CLASS_NAMES[label] / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(image, str(path))
    return folder


def write_clouds(folder: Path, *, classes: int = 2, per_class: int = 6, num_points: int = 64) -> Path:
    """shapes_POINTS_train.npz and shapes_POINTS_test.npz, of the first classes."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        clouds = load_clouds(split, per_class=per_class, num_points=num_points)
        some = clouds.label < classes
        np.savez(
            folder / f"shapes_{num_points}_{split}.npz",
            points=clouds.points[some].numpy(),
            label=clouds.label[some].numpy(),
            class_names=np.array(CLASS_NAMES[:classes]),
            scale=np.float32(1 / SCALE),
        )
    return folder
