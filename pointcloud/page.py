"""The page's tabs for users' meshes and clouds: their classes, their parts, and a view that can be turned.

N points, F faces.
"""

from __future__ import annotations

import html
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
from shared_attn.runtime.page import connect, import_gradio, own_folder, refuse_addresses
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
    written = save_segmentation(UserFile(path, path.stem), result, names, folder / path.stem, ("ply", "html"))
    ply, page = written.written
    ply = ply.rename(folder / f"{path.stem}-parts.ply")  # downloaded, it should not replace what was uploaded
    points, faces = result.label_points(), result.label_faces()
    counts = {"points" if faces is None else "vertices": np.bincount(points, minlength=len(names))}
    sizes, corners = np.ones(len(points)), result.shape.faces
    if faces is not None and corners is not None:
        counts["faces"] = np.bincount(faces, minlength=len(names))
        a, b, c = (result.shape.points[corner] for corner in corners.T)
        sizes = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    shares = np.bincount(points if faces is None else faces, weights=sizes, minlength=len(names)) / sizes.sum()
    heading = f"{written.category or 'parts'}, {written.up} up"
    return embed(page), _table(heading, names, counts, shares, "share" if faces is None else "area"), ply


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


def _table(heading: str, names: list[str], counts: dict[str, np.ndarray], shares: np.ndarray, share: str) -> str:
    """A row for each part that the shape has, the largest first."""
    colours = part_colours(names)
    head = "".join(f"<th>{word}</th>" for word in (html.escape(heading), *counts, share))
    rows = []
    present = np.max(list(counts.values()), axis=0) > 0
    for number in sorted(np.flatnonzero(present), key=lambda number: -shares[number]):
        swatch = f'<i style="background: rgb({", ".join(map(str, colours[number]))})"></i>'
        cells = [f"{count[number]:,}" for count in counts.values()] + [f"{shares[number]:.1%}"]
        part = html.escape(names[number].rpartition("/")[2])
        rows.append(f"<tr><td>{swatch}{part}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _add_inputs(gradio: Any) -> tuple[Any, Any]:
    file = refuse_addresses(gradio.File(label="Mesh or point cloud", type="filepath", height=150))
    gradio.HTML(f'<div class="hint">{FORMATS}</div>', apply_default_css=False)
    folder = Path(tempfile.mkdtemp(dir=own_folder(), prefix="examples-"))
    for name in EXAMPLES:
        create_mesh(name, seed=0).save(folder / f"{name}.off")
    files = [[str(folder / f"{name}.off")] for name in EXAMPLES]
    gradio.Examples(files, [file], label="Or one of these", example_labels=list(EXAMPLES))
    up = gradio.Radio(UPS, value="auto", label="Up axis", info="auto: y for glTF, else z or y by the surer answer")
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
            message = gradio.HTML(visible=False, apply_default_css=False)
            view = gradio.HTML(apply_default_css=False)
    connect([file.change, up.input], answer, [file, up], [label, view], message=message, name="classify")


def fill_segment_tab(model: LoadedModel) -> None:
    """The tab's controls and answers, in gradio's present tab."""
    gradio = import_gradio()
    from pointcloud.evaluation import takes_category

    def answer(folder: Path, path: str | None, up: Up, category: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, None, None
        view, table, ply = segment(model, folder, Path(path), up, None if category == GUESS else category)
        return view, table, gradio.update(value=str(ply), interactive=True)

    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            file, up = _add_inputs(gradio)
            categories = [GUESS, *(model.class_names if takes_category(model.network) else ())]
            category = gradio.Dropdown(
                categories, value=GUESS, label="Class", info="give it where it is known", visible=len(categories) > 1
            )
            ply = gradio.DownloadButton("Coloured points and faces (.ply)", interactive=False)
        with gradio.Column(scale=2):
            message = gradio.HTML(visible=False, apply_default_css=False)
            view = gradio.HTML(apply_default_css=False)
            table = gradio.HTML(apply_default_css=False)
    events = [file.change, up.input, category.input]
    connect(events, answer, [file, up, category], [view, table, ply], message=message, name="segment")
