"""The page's tab that draws samples: the same images as `scripts/sample_gan.py` draws for the same seeds."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gan.generator import Generator
from gan.pictures import write_grid
from gan.samples.folder import name_file, name_folders, write_png
from gan.samples.grids import plan_grid
from gan.samples.options import SampleConfig, check_samples
from gan.sampling import draw_images, find_classes, squeeze_latents
from shared_attn.runtime.page import connect, import_gradio

MOST = 256  # images of one call: a page is no place for thousands
LARGEST_SEED = 2**53 - 1  # that a browser's numbers hold
A_CLASS = 8  # images of each class that the page begins with


@dataclass(frozen=True)
class Drawn:
    """A grid, its single images with what they show ("cat, seed 3"), and a zip of these."""

    grid: Path
    images: list[tuple[Path, str]]
    archive: Path


def draw(
    generator: Generator,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    truncation: float | None = None,
    count: int = 64,
) -> Drawn:
    """Draws as `scripts/sample_gan.py` does with these flags, into a folder.

    Args:
        classes: names or numbers; none: all.
        count: images in all, shared by the classes.

    Raises:
        ValueError: in one line, for a value that cannot be drawn.
    """
    if count > MOST:
        raise ValueError(f"--count {count}: expected at most {MOST} here; scripts/sample_gan.py draws any number")
    if seed > LARGEST_SEED:
        raise ValueError(f"--seed {seed}: expected at most {LARGEST_SEED}")
    config = SampleConfig("", str(folder / "grid.png"), count, tuple(classes), truncation, seed)
    check_samples(config)
    numbers = find_classes(classes, generator.class_names) or list(range(generator.num_classes))
    plan = plan_grid(generator, config, list(dict.fromkeys(numbers)))
    images = torch.cat(list(draw_images(generator, squeeze_latents(plan.z, truncation), plan.labels))).cpu()
    drawn = Drawn(folder / "grid.png", [], folder / "samples.zip")
    write_grid(drawn.grid, images, plan.columns, plan.row_names, fold=True)
    safe = name_folders(generator.class_names)
    with zipfile.ZipFile(drawn.archive, "w") as archive:
        for place, (image, label) in enumerate(zip(images, plan.labels.tolist(), strict=True)):
            own = seed + place % plan.columns
            path = folder / f"{safe[label]}-{name_file(own)}"
            write_png(path, image)
            archive.write(path, f"{safe[label]}/{name_file(own)}")
            drawn.images.append((path, f"{generator.class_names[label]}, seed {own}"))
    return drawn


def fill_sample_tab(generator: Generator) -> None:
    """The tab's controls and pictures, in gradio's present tab."""
    gradio = import_gradio()
    names = generator.class_names

    def answer(
        folder: Path, classes: list[str], seed: float | None, truncation: float | None, count: float | None
    ) -> tuple[Any, ...]:
        for name, value in (("seed", seed), ("count", count)):
            if value is None or value != int(value):
                raise ValueError(f"--{name} {'' if value is None else value}: expected a whole number")
        drawn = draw(
            generator,
            folder,
            classes=classes or (),
            seed=int(seed or 0),
            truncation=truncation or None,  # a slider has no other way to say none
            count=int(count or 0),
        )
        archive = gradio.update(value=str(drawn.archive), interactive=True)
        return str(drawn.grid), [(str(path), caption) for path, caption in drawn.images], archive

    with gradio.Row():
        with gradio.Column(scale=1, min_width=260):
            classes = gradio.Dropdown(
                names, multiselect=True, label="Classes", info="none chosen: all, a row for each", value=[]
            )
            seed = gradio.Number(
                0, label="Seed", info="of each row's first image; the next has the next seed", precision=0
            )
            truncation = gradio.Slider(
                0, 2, 0, step=0.05, label="Truncation", info="0.7, say: fewer failures, less variety; 0: none"
            )
            count = gradio.Slider(
                1, MOST, min(A_CLASS * len(names), 80), step=1, label="Images", info="in all, shared by the classes"
            )
            button = gradio.Button("Draw", variant="primary")
            archive = gradio.DownloadButton("Single images (.zip)", interactive=False)
        with gradio.Column(scale=3):
            message = gradio.HTML(visible=False, apply_default_css=False)
            grid = gradio.Image(
                label="Grid",
                type="filepath",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_classes="pixels",
            )
            single = gradio.Gallery(
                label="Single images", columns=6, object_fit="contain", height="auto", interactive=False,
                buttons=["download", "fullscreen"], elem_classes="pixels",
            )  # fmt: skip
    connect(
        [button.click],
        answer,
        [classes, seed, truncation, count],
        [grid, single, archive],
        message=message,
        name="sample",
    )
