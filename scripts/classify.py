"""Say what meshes and point clouds show: class, probability and the five likeliest classes of each file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from command_line import check_positive, parse, quick_imports, run


@dataclass(frozen=True)
class Options:
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, folders (searched to any depth) or patterns. Meshes or clouds: .off .obj .ply .stl .glb .gltf, .xyz .txt
    .pts .csv, .npy."""
    weights: str = "eat-small-modelnet40"
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    up: Literal["z", "y", "auto"] = "z"
    """Which axis of the files is up (ModelNet's is z); auto: y for glTF, else z or y by the surer answer."""
    samplings: int = 8
    """Seeded samplings of each shape whose answers are averaged."""
    json: bool = False
    """Print one JSON list instead of a table."""
    answers: Path | None = None
    """Write them to this file, as JSON lines, and go on where that stopped; torchrun's processes share the files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if not options.files:
        raise ValueError("no files given; expected meshes or clouds")
    check_positive(options, "samplings")
    with quick_imports():
        from pointcloud.files.answers import Answers, tell_axes
        from pointcloud.files.bulk import answer_all, join_processes
        from pointcloud.files.prediction import classify_files
        from pointcloud.files.streaming import thread_pool
        from pointcloud.files.user_files import find_files
        from pointcloud.models import CLASSIFIER, load_model

    share, device = join_processes(options.device, options.answers, as_json=options.json)
    model = load_model(options.weights, CLASSIFIER, device=device)
    files, chosen = find_files(options.files), []
    choice: dict[str, Any] = {"up": options.up, "samplings": options.samplings}
    work = partial(classify_files, model, **choice)
    if options.answers is not None:
        raise SystemExit(answer_all(options.answers, files, vars(options), model, work, share))
    automatic = options.up == "auto"
    widest = max(map(len, model.class_names))
    columns = {"class": widest, "probability": 11, **({"up": 2} if automatic else {}), "next": 0}
    with thread_pool(len(files)) as pool, Answers(files, columns, as_json=options.json) as answers:
        for file, answer in work(files, pool=pool):
            if isinstance(answer, Exception):
                answers.skip(file, answer)
                continue
            chosen.append((answer.file, answer.up))
            first, *others = [(str(top["class"]), f"{top['probability']:.1%}") for top in answer.top]
            cells = [*first, *([answer.up] if automatic else []), ", ".join(" ".join(other) for other in others)]
            answers.row(file, cells, answer.as_dict())
    if automatic and options.json:
        print(tell_axes(chosen), file=sys.stderr)
    if answers.skipped:
        raise SystemExit(2)


if __name__ == "__main__":
    run(main)
