"""Users' files: meshes and clouds of many formats become points. z is up in the networks' data.

trimesh reads the meshes and samples their surfaces by area, with a seed; this file adds what it does not: OFF headers
glued to their counts ("OFF490 518 0", as in ModelNet), text clouds, .npy, and one clear line for each thing that can
be wrong.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pointcloud.files.claims import check_claims, check_length
from pointcloud.releases.text_clouds import MOST_POINTS, read_text_cloud
from shared_attn.runtime.arrays import map_array
from shared_attn.runtime.extras import importing
from shared_attn.runtime.messages import first_line

MESHES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")
TEXT_CLOUDS = (".xyz", ".txt", ".pts", ".csv")
Up = Literal["z", "y"]


@dataclass(frozen=True)
class Shape:
    """A user's shape: points (N, 3), float64, z up; faces (F, 3) into them, or None for a cloud."""

    points: np.ndarray
    faces: np.ndarray | None

    def turned(self) -> Shape:
        """The shape with its y axis made z, by a quarter turn about x."""
        x, y, z = self.points.T
        return Shape(np.stack([x, -z, y], axis=1), self.faces)

    def sample(self, count: int, seed: int) -> np.ndarray:
        """(count, 3) points: of a mesh drawn from its surface by area; of a cloud drawn from it, without replacement
        where it has enough, else each of its points as evenly often as can be."""
        if self.faces is None:
            generator, total = np.random.default_rng(seed), len(self.points)
            whole = [generator.permutation(total) for _ in range(count // total)]
            return self.points[np.concatenate([*whole, generator.choice(total, count % total, replace=False)])]
        sampled = _import_trimesh().sample.sample_surface(self._surface, count, face_weight=self._areas, seed=seed)
        return np.asarray(sampled[0])

    @cached_property
    def _surface(self) -> Any:
        return _import_trimesh().Trimesh(self.points, self.faces, process=False)

    @cached_property
    def _areas(self) -> np.ndarray:
        """Of the faces: trimesh would compute them for each sampling."""
        return np.asarray(self._surface.area_faces)


def read_shape(path: str | Path, up: Up = "z") -> Shape:
    """Reads a mesh or a cloud.

    Args:
        path: .off .obj .ply .stl .glb .gltf (meshes; a .ply, .obj or .off without faces is a cloud), .xyz .txt .pts
            .csv (x y z first in each line, further columns are left out) or .npy (points, at least 3 columns).
        up: which of its axes is up.

    Raises:
        ValueError, FileNotFoundError: in one line, naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    suffix = path.suffix.lower()
    if suffix not in (*MESHES, *TEXT_CLOUDS, ".npy"):
        known = " ".join((*MESHES, *TEXT_CLOUDS, ".npy"))
        raise ValueError(f"{path}: unknown file type {suffix or '(none)'}; expected one of {known}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    if suffix == ".npy":
        shape = check_shape(path, _read_npy(path), None)
    elif suffix in TEXT_CLOUDS:
        shape = check_shape(path, read_text_cloud(path), None)
    else:
        try:
            check_length(path.stat().st_size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        shape = parse_mesh(path, path.read_bytes())
    return shape.turned() if up == "y" else shape


def parse_mesh(path: Path, content: bytes) -> Shape:
    """A mesh (or a cloud in a mesh format) from its file's bytes; `path` says the format, and is named in errors.

    Raises:
        ValueError: in one line, naming the file and what is wrong with it.
    """
    trimesh, suffix = _import_trimesh(), path.suffix.lower()
    if suffix == ".off":
        content = separate_off_header(path, content)
    try:
        content = check_claims(suffix, content)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable {suffix} file: {first_line(error)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = trimesh.load(io.BytesIO(content), file_type=suffix[1:], process=False, skip_materials=True)
            if isinstance(loaded, trimesh.Scene):
                loaded = loaded.to_geometry()
    except Exception as error:  # trimesh's readers raise whatever a damaged file makes them run into
        raise ValueError(f"{path}: not a readable {suffix} file ({first_line(error)})") from error
    points = np.asarray(getattr(loaded, "vertices", np.empty((0, 3))), dtype=np.float64)
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))))
    if any(len(rows) and (rows.ndim != 2 or rows.shape[1] != 3) for rows in (points, faces)):
        raise ValueError(f"{path}: its points are {points.shape} and its faces {faces.shape}, expected rows of 3")
    return check_shape(path, points, faces if len(faces) else None)


def check_shape(path: Path, points: np.ndarray, faces: np.ndarray | None) -> Shape:
    """Points (N, 3), and faces (F, 3) into them or None, as a shape.

    Raises:
        ValueError: no points, one that is not finite or is too large, or faces without area; `path` is named.
    """
    if len(points) == 0:
        raise ValueError(f"{path}: holds neither faces nor points")
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {len(points)} points have a coordinate that is NaN or infinite")
    if np.abs(points).max() > 1e30:
        raise ValueError(f"{path}: coordinates up to {np.abs(points).max():.3g}, too large to compute with")
    if faces is not None:
        if faces.min() < 0 or faces.max() >= len(points):
            raise ValueError(
                f"{path}: its faces name points {faces.min()} to {faces.max()}, but there are {len(points)}"
            )
        a, b, c = (points[faces[:, corner]] for corner in range(3))
        if not np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() > 0:
            raise ValueError(f"{path}: its {len(faces)} faces have no area to sample points from")
    return Shape(points, faces)


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = map_array(path)  # no second copy of a large scan
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable .npy array ({first_line(error)})") from error
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected numbers of shape (points, 3 or more), got {array.dtype} {array.shape}")
    if len(array) > MOST_POINTS:
        raise ValueError(f"{path}: {len(array):,} points, at most {MOST_POINTS:,} are read")
    return array[:, :3].astype(np.float64)


def separate_off_header(path: Path, content: bytes) -> bytes:
    """Puts the counts of an OFF file on a line of their own where they are glued to the word OFF (ModelNet40)."""
    if not content[:3].upper() == b"OFF":
        raise ValueError(f"{path}: does not begin with OFF, so it is no OFF file")
    return b"OFF\n" + content[3:].lstrip()


def _import_trimesh() -> Any:
    with importing("reading and writing meshes"):
        import trimesh
        import trimesh.sample

    return trimesh
