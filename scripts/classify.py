"""Say what meshes and point clouds show: class, probability and the five likeliest classes of each file."""

from __future__ import annotations

import json
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
    weights: str = "eat-small-modelnet40"
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    up: Literal["z", "y", "auto"] = "z"
    """Which axis of the files is up (ModelNet's is z); auto tries z and y and keeps the surer answer."""
    json: bool = False
    """Print one JSON list instead of text."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if not options.files:
        raise ValueError("no files given; expected meshes or clouds")
    from pointcloud.models import CLASSIFIER, load_model
    from pointcloud.prediction import classify_file

    model = load_model(options.weights, CLASSIFIER)
    answers = []
    for file in options.files:
        try:
            answers.append(classify_file(model, file, up=options.up))
        except (ValueError, OSError) as error:
            answers.append({"file": str(file), "error": " ".join(str(error).split())})
        if not options.json:
            show(answers[-1])
    if options.json:
        print(json.dumps(answers, indent=2))
    if any("error" in answer for answer in answers):
        raise SystemExit(2)


def show(answer: dict) -> None:
    if "error" in answer:
        print(f"error: {answer['error']}", file=sys.stderr)
        return
    others = ", ".join(f"{other['class']} {other['probability']:.1%}" for other in answer["top5"][1:])
    print(f"{answer['file']}: {answer['class']} {answer['probability']:.1%}   ({others})")


if __name__ == "__main__":
    run(main)
