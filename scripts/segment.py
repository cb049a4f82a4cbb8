"""Label the parts of meshes and point clouds: a coloured PLY, a PNG and an interactive HTML page of each file."""

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
    weights: str = "eat-shapes-parts"
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    out: Path = Path("out")
    """Folder of what is written; a folder's files keep their places in it."""
    formats: tuple[Literal["ply", "png", "html"], ...] = ("ply", "png", "html")
    """What is written of each file: all points and faces coloured, a picture, an interactive page."""
    category: str | None = None
    """The files' class. Without it every class of the weights is tried, and the likeliest kept: a guess, so give it
    where it is known."""
    up: Literal["z", "y", "auto"] = "z"
    """Which axis of the files is up; auto: y for glTF, else z or y by the surer answer."""
    samplings: int = 4
    """Seeded samplings of each shape; its points take the parts of the nearest sampled ones."""
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
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: a file; expected a folder")
    with quick_imports():
        from pointcloud.files.answers import Answers, tell_axes
        from pointcloud.files.bulk import answer_all, join_processes
        from pointcloud.files.segmentation import segment_files
        from pointcloud.files.segmented_files import Writer
        from pointcloud.files.streaming import thread_pool
        from pointcloud.files.user_files import find_files
        from pointcloud.models import SEGMENTER, load_model
    share, device = join_processes(options.device, options.answers, as_json=options.json)
    model = load_model(options.weights, SEGMENTER, device=device)
    files, chosen = find_files(options.files, leave_out=options.out), []
    write = Writer(options.out, model.header["part_names"], options.formats, files)
    columns = {"category": 12, **({"up": 2} if options.up == "auto" else {}), "parts": 40, "written": 0}
    choice: dict[str, Any] = {"category": options.category, "up": options.up, "samplings": options.samplings}
    work = partial(segment_files, model, finish=write, **choice)
    if options.answers is not None:
        raise SystemExit(answer_all(options.answers, files, vars(options), model, work, share))
    with thread_pool(len(files)) as pool, Answers(files, columns, as_json=options.json) as answers:
        for file, done in work(files, pool=pool):
            if isinstance(done, Exception):
                answers.skip(file, done)
                continue
            chosen.append((done.file, done.up))
            shares = ", ".join(f"{part} {share:.0%}" for part, share in done.shares.items())
            cells = [done.category or "-", *([done.up] if options.up == "auto" else []), shares]
            answers.row(file, [*cells, " ".join(map(str, done.written))], done.as_dict())
    if options.up == "auto" and options.json:
        print(tell_axes(chosen), file=sys.stderr)
    sys.exit(2 if answers.skipped else 0)


if __name__ == "__main__":
    run(main)
