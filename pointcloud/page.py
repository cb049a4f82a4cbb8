"""The page's tabs for users' meshes and clouds: their classes, their parts, and a view that can be turned.

N points, F faces.
"""

from __future__ import annotations

import html
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pointcloud.files.meshes import MESHES, TEXT_CLOUDS, Shape
from pointcloud.files.prediction import Axis, Up, classify_files, read_user_file
from pointcloud.files.segmentation import segment_file
from pointcloud.files.segmented_files import SHOWN, save_segmentation
from pointcloud.files.user_files import UserFile
from pointcloud.files.viewer import View, save_views_html
from pointcloud.models import LoadedModel
from pointcloud.pictures import part_colours
from shared_attn.runtime.page import UPLOADS, connect, import_gradio, refuse_addresses
from shared_attn.shapes import create_mesh

GREY = np.array([[120, 150, 190]], dtype=np.uint8)
UPS = (("auto", "auto"), ("z", "z"), ("y", "y"))
FORMATS = " ".join((*MESHES, *TEXT_CLOUDS, ".npy"))
GUESS = "(guess)"
EXAMPLES = ("chair", "car", "guitar", "lamp")  # of the embedded shapes: classes that ModelNet40 has too


def classify(model: LoadedModel, folder: Path, path: Path, up: Up = "auto") -> tuple[dict[str, float], str, str]:
    """The likeliest classes with their probabilities, the axis taken to be up, and a view of the shape, as HTML.

    Raises:
        ValueError, OSError: in one line, naming the file and what is wrong with it.
    """
    file = UserFile(path, path.stem)
    _, answer = next(classify_files(model, [file], up=up))
    if isinstance(answer, Exception):
        raise answer
    page = folder / "view.html"
    save_views_html([_plain_view(read_user_file(file), answer.up, path.name)], [""], GREY, page)
    return {top["class"]: top["probability"] for top in answer.top}, answer.up, embed(page, legend=False)


def segment(
    model: LoadedModel, folder: Path, path: Path, up: Up = "auto", category: str | None = None
) -> tuple[str, str, Path]:
    """A view of the coloured parts and a table of them, as HTML, and the coloured PLY.

    Raises:
        ValueError, OSError: in one line, naming the file and what is wrong with it.
    """
    result = segment_file(model, path, up=up, category=category)
    names: list[str] = model.header["part_names"]
    written = save_segmentation(
        UserFile(path, path.stem), result, names, folder / f"{path.stem}-parts", ("ply", "html")
    )
    ply, page = written.written
    points, face_parts = result.label_points(), result.label_faces()
    sampled = np.bincount(result.sampled_parts, minlength=len(names))
    counts = {"vertices" if face_parts is not None else "points": np.bincount(points, minlength=len(names))}
    if face_parts is not None:
        counts["faces"] = np.bincount(face_parts, minlength=len(names))
    shares = sampled / sampled.sum() if face_parts is not None else counts["points"] / len(points)
    heading = f"{written.category or 'parts'}, {written.up} up"
    return embed(page), _table(heading, names, counts, shares), ply


def embed(page: Path, *, legend: bool = True) -> str:
    """A page of `save_views_html` inside another, shut off from it."""
    text = page.read_text(encoding="utf-8")
    if not legend:
        text = text.replace("</style>", ".legend { visibility: hidden; height: 0; }\n</style>", 1)
    attributes = 'class="shape" title="a shape that can be turned" sandbox="allow-scripts"'
    return f'<iframe {attributes} srcdoc="{html.escape(text)}"></iframe>'


def _plain_view(shape: Shape, up: Axis, title: str) -> View:
    """All of a shape in one colour; of a large one so many points."""
    faces, points = shape.faces, shape.points
    if faces is not None and len(faces) <= SHOWN:
        used, corners = np.unique(faces, return_inverse=True)
        points, faces = points[used], corners.reshape(-1, 3)
    elif faces is not None or len(points) > SHOWN:
        points, faces = shape.sample(SHOWN, seed=0), None
    points = Shape(points, None).turned().points if up == "y" else points
    return View(points, np.zeros(len(points if faces is None else faces), dtype=np.int64), title, faces)


def _table(heading: str, names: list[str], counts: dict[str, np.ndarray], shares: np.ndarray) -> str:
    """A row for each part that the shape has, the largest first."""
    colours = part_colours(names)
    head = "".join(f"<th>{word}</th>" for word in (html.escape(heading), *counts, "share"))
    rows = []
    present = np.max(list(counts.values()), axis=0) > 0
    for number in sorted(np.flatnonzero(present), key=lambda number: -shares[number]):
        swatch = f'<i style="background: rgb({", ".join(map(str, colours[number]))})"></i>'
        cells = [f"{count[number]:,}" for count in counts.values()] + [f"{shares[number]:.1%}"]
        part = html.escape(names[number].rpartition("/")[2])
        rows.append(f"<tr><td>{swatch}{part}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _add_inputs(gradio: Any) -> tuple[Any, Any]:
    file = refuse_addresses(gradio.File(label=f"Mesh or point cloud ({FORMATS})", type="filepath", height=170))
    up = gradio.Radio(UPS, value="auto", label="Up axis", info="auto: y for glTF, else z or y by the surer answer")
    folder = Path(tempfile.mkdtemp(dir=os.environ.get(UPLOADS), prefix="examples-"))
    for name in EXAMPLES:
        create_mesh(name, seed=0).save(folder / f"{name}.off")
    files = [[str(folder / f"{name}.off")] for name in EXAMPLES]
    gradio.Examples(files, [file], label="Or one of these", example_labels=list(EXAMPLES))
    return file, up


def fill_classify_tab(model: LoadedModel) -> None:
    """The tab's controls and answers, in gradio's present tab."""
    gradio = import_gradio()

    def answer(folder: Path, path: str | None, up: Up) -> tuple[Any, ...]:
        if path is None:
            return None, None
        probabilities, axis, view = classify(model, folder, Path(path), up)
        return gradio.update(value=probabilities, label=f"Class, {axis} up"), view

    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            file, up = _add_inputs(gradio)
            label = gradio.Label(label="Class", num_top_classes=5)
        with gradio.Column(scale=2):
            message = gradio.HTML(visible=False)
            view = gradio.HTML()
    connect([file.change, up.input], answer, [file, up], [label, view], message=message, name="classify")


def fill_segment_tab(model: LoadedModel) -> None:
    """The tab's controls and answers, in gradio's present tab."""
    gradio = import_gradio()
    from pointcloud.evaluation import takes_category

    def answer(folder: Path, path: str | None, up: Up, category: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, None, None
        view, table, ply = segment(model, folder, Path(path), up, None if category == GUESS else category)
        return view, table, str(ply)

    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            file, up = _add_inputs(gradio)
            categories = [GUESS, *(model.class_names if takes_category(model.network) else ())]
            category = gradio.Dropdown(
                categories, value=GUESS, label="Class", info="give it where it is known", visible=len(categories) > 1
            )
            ply = gradio.DownloadButton("Coloured points and faces (.ply)")
        with gradio.Column(scale=2):
            message = gradio.HTML(visible=False)
            view = gradio.HTML()
            table = gradio.HTML()
    events = [file.change, up.input, category.input]
    connect(events, answer, [file, up, category], [view, table, ply], message=message, name="segment")
