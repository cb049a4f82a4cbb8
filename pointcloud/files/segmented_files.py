"""What is written of a segmented file: a coloured PLY, a PNG and an interactive page. N points, F faces."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

import numpy as np

from pointcloud.files.meshes import Shape
from pointcloud.files.ply import save_parts_ply
from pointcloud.files.segmentation import Segmentation
from pointcloud.files.user_files import UserFile
from pointcloud.files.viewer import View, save_views_html
from pointcloud.pictures import part_colours, save_clouds_png
from shared_attn.runtime.files import atomic_write

Format = Literal["ply", "png", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)
DRAWN_POINTS = 10_000  # of a cloud, in the PNG; the .ply holds all
SHOWN = 100_000  # points or faces in the page
_drawing = Lock()  # matplotlib draws one picture at a time


@dataclass(frozen=True)
class SegmentedFile:
    """What became of a file: its shape's category and up axis, each part's share of the points (of a mesh: of the
    points drawn from its surface by area), the largest first, and the files that were written."""

    file: str
    category: str | None
    up: str
    shares: dict[str, float]
    written: list[Path]

    def as_dict(self) -> dict[str, object]:
        """{"file", "category", "parts": [{"part", "share"}], "written"}."""
        parts = [{"part": part, "share": round(share, 6)} for part, share in self.shares.items()]
        return {"file": self.file, "category": self.category, "parts": parts, "written": list(map(str, self.written))}


class Writer:
    """Writes segmented files into a folder, under the names of `find_files`, but never over one of the files read."""

    def __init__(
        self, folder: Path, names: Sequence[str], formats: Iterable[Format], files: Iterable[UserFile]
    ) -> None:
        """Raises OSError where the folder cannot be written to, before any work."""
        self._folder, self._names, self._formats = folder, names, tuple(formats)
        self._inputs = {os.path.abspath(file.path) for file in files}
        with atomic_write(folder / ".writable"):
            pass
        (folder / ".writable").unlink(missing_ok=True)  # another process may have done so

    def __call__(self, file: UserFile, result: Segmentation) -> SegmentedFile:
        stem = self._folder / (file.name or file.path.stem)
        while any(os.path.abspath(f"{stem}.{name}") in self._inputs for name in self._formats):
            stem = stem.with_name(stem.name + "-parts")
        return save_segmentation(file, result, self._names, stem, self._formats)


def save_segmentation(
    file: UserFile, result: Segmentation, names: Sequence[str], stem: Path, formats: Iterable[Format] = FORMATS
) -> SegmentedFile:
    """Writes stem.ply (every point, or vertex and face, coloured by its part), stem.png and stem.html.

    Args:
        names: of all parts the network knows.

    Raises:
        OSError: a file cannot be written; the message names it.
    """
    parts, face_parts, colours = result.label_points(), result.label_faces(), part_colours(names)
    title = stem.name if result.category is None else f"{stem.name}: {result.category}"
    wanted = [(name, stem.with_name(f"{stem.name}.{name}")) for name in FORMATS if name in set(formats)]
    for name, path in wanted:
        try:
            if name == "ply":
                shape = result.shape
                save_parts_ply(path, shape.points, parts, names, colours, faces=shape.faces, face_parts=face_parts)
            elif name == "png":
                points, labels = (result.places, result.sampled_parts)
                if face_parts is None:
                    points, labels = _thin(result.shape.points, parts, DRAWN_POINTS)
                with _drawing:
                    save_clouds_png([_upright(result, points)], [labels], names, path, titles=[title])
            else:
                save_views_html([_view(result, parts, face_parts, title)], names, colours, path)
        except OSError as error:
            if str(path) in str(error):
                raise
            raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
    counts = np.bincount(parts if face_parts is None else result.sampled_parts, minlength=len(names))
    order = [number for number in np.argsort(-counts, kind="stable") if counts[number]]
    shares = {names[number].rpartition("/")[2]: counts[number] / counts.sum() for number in order}
    return SegmentedFile(str(file.path), result.category, result.up, shares, [path for _, path in wanted])


def _view(result: Segmentation, parts: np.ndarray, face_parts: np.ndarray | None, title: str) -> View:
    shape = result.shape
    if shape.faces is None or face_parts is None:
        points, labels = _thin(shape.points, parts, SHOWN)
        return View(_upright(result, points), labels, title)
    if len(shape.faces) <= SHOWN:
        used, corners = np.unique(shape.faces, return_inverse=True)
        return View(_upright(result, shape.points[used]), face_parts, title, corners.reshape(-1, 3))
    points = shape.sample(SHOWN, seed=0)
    return View(_upright(result, points), result.parts_of(points), title)


def _upright(result: Segmentation, points: np.ndarray) -> np.ndarray:
    """z up, as pictures show it."""
    return Shape(points, None).turned().points if result.up == "y" else points


def _thin(points: np.ndarray, parts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most so many of the points with their parts, a seeded choice."""
    if len(points) <= count:
        return points, parts
    chosen = np.random.default_rng(0).choice(len(points), count, replace=False)
    return points[chosen], parts[chosen]
