"""Show what the memory slots of external attention attend to, in a generator's samples or in meshes and clouds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from command_line import parse, run


@dataclass(frozen=True)
class Options:
    weights: str
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """For a point network: meshes or clouds, as classify.py takes them."""
    out: Path = Path("out")
    """Folder of the pictures: attention.png; for points also a page and a coloured PLY a slot of each file."""
    slots: tuple[int, ...] = ()
    """Memory slots to show, from 0; none: those that vary most over the tokens without repeating each other."""
    num_slots: int = 5
    """How many, where --slots does not say."""
    heads: tuple[int, ...] = ()
    """Of multi-head attention: heads to choose from, from 0; none: all."""
    layer: int | None = None
    """Which attention layer, from 1; the last by default."""
    seed: int = 0
    """Of each class's first sample, or of each file's first sampling."""
    count: int | None = None
    """For a generator: samples in all, shared evenly by the classes; 8 by default."""
    classes: tuple[str, ...] = ()
    """For a generator: names or numbers of classes; none: all."""
    up: Literal["z", "y"] | None = None
    """For a point network: which axis of the files is up; z by default."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if options.out.is_file():
        raise ValueError(f"--out {options.out}: a file; expected a folder")
    from gan.sampling import KIND, load_generator
    from shared_attn.runtime.weights import find_weights, load_weights

    path = find_weights(options.weights)
    choice = {name: getattr(options, name) for name in ("slots", "num_slots", "heads", "layer", "seed")}
    generates = load_weights(path)[1]["kind"] == KIND
    foreign: dict[str, object] = {"--count": options.count, "--classes": options.classes}
    if generates:
        foreign = {" ".join(map(str, options.files)): options.files, "--up": options.up}
    for what, value in foreign.items():
        if value not in ((), None):
            raise ValueError(f"{what}: not for {path}, which holds a {'generator' if generates else 'point network'}")
    if generates:
        from gan.attention_pictures import draw_image_attention

        out, count = options.out / "attention.png", 8 if options.count is None else options.count
        shown = draw_image_attention(load_generator(path), out, count=count, classes=options.classes, **choice)
        print(f"{out}: {', '.join(map(str, shown))}")
        return
    from pointcloud.attention_pictures import draw_cloud_attention
    from pointcloud.models import load_model

    if not options.files:
        raise ValueError("no files given; expected meshes or clouds")
    drawn = draw_cloud_attention(load_model(path), options.files, options.out, up=options.up or "z", **choice)
    for mistake in drawn.mistakes:
        print(f"error: {mistake}", file=sys.stderr)
    for picture in drawn.pictures:
        print(f"{picture}: {', '.join(map(str, drawn.slots))}")
    for file, paths in drawn.files.items():
        print(f"{file} -> {' '.join(map(str, paths))}")
    if drawn.mistakes:
        raise SystemExit(2)


if __name__ == "__main__":
    run(main)
