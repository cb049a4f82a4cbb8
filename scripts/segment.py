"""Label the parts of meshes and point clouds: a coloured PLY, a PNG and an interactive HTML page of each file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from command_line import parse, run


@dataclass(frozen=True)
class Options:
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Meshes or clouds: .off .obj .ply .stl .glb .gltf, .xyz .txt .pts .csv, .npy."""
    weights: str = "eat-shapes-parts"
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    out: Path = Path("out")
    """Folder of the pictures."""
    category: str | None = None
    """The files' class; without it every class of the weights is tried and the likeliest kept."""
    up: Literal["z", "y"] = "z"
    """Which axis of the files is up."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if not options.files:
        raise ValueError("no files given; expected meshes or clouds")
    from pointcloud.models import SEGMENTER, load_model
    from pointcloud.prediction import describe_parts, save_segmentation, segment_file

    model, failed, used = load_model(options.weights, SEGMENTER), False, set()
    for file in options.files:
        try:
            result = segment_file(model, file, category=options.category, up=options.up)
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            failed = True
            continue
        name = file.stem if file.stem not in used else f"{file.stem}-{len(used)}"
        used.add(name)
        paths = save_segmentation(model, result, options.out / name)
        print(f"{file}: {describe_parts(model, result)} -> {' '.join(map(str, paths))}")
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    run(main)
