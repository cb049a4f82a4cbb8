"""Coloured PLY files with a part's number beside each colour, which trimesh cannot write. N points, F faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared_attn.runtime.files import atomic_write

ROWS_AT_ONCE = 2**18  # bounds the memory that a large scan needs
COLOUR = [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("part", "<i4")]
TYPES = {"<f8": "double", "<f4": "float", "u1": "uchar", "<i4": "int"}


def save_parts_ply(
    path: Path,
    points: np.ndarray,
    parts: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    *,
    faces: np.ndarray | None = None,
    face_parts: np.ndarray | None = None,
) -> None:
    """Writes points (N, 3), float64, and for a mesh its faces (F, 3), each with its part's colour and number.

    The parts' names stand in the header's comments: "part 3 chair/back". Vertices are coloured for programs that show
    no colours of faces; where both are read, the faces' are the sharper.

    Args:
        parts, face_parts: (N,), (F,), indices into names and colours (len(names), 3) uint8.
    """
    vertex = [(axis, "<f8") for axis in "xyz"] + COLOUR
    face = [("count", "u1"), ("corners", "<i4", (3,)), *COLOUR]
    present = np.unique(parts if face_parts is None else np.concatenate([parts, face_parts]))
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment part {number} {_one_line(names[number])}" for number in present]
    header += [f"element vertex {len(points)}", *(f"property {TYPES[kind]} {name}" for name, kind in vertex)]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        header += [f"property {TYPES[kind]} {name}" for name, kind in COLOUR]
    with atomic_write(path) as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode())
        for start in range(0, len(points), ROWS_AT_ONCE):
            chunk = slice(start, start + ROWS_AT_ONCE)
            rows = np.empty(len(points[chunk]), dtype=vertex)
            for axis, name in enumerate("xyz"):
                rows[name] = points[chunk, axis]
            file.write(_coloured(rows, parts[chunk], colours).tobytes())
        for start in range(0, 0 if faces is None or face_parts is None else len(faces), ROWS_AT_ONCE):
            assert faces is not None and face_parts is not None
            chunk = slice(start, start + ROWS_AT_ONCE)
            rows = np.empty(len(faces[chunk]), dtype=face)
            rows["count"], rows["corners"] = 3, faces[chunk]
            file.write(_coloured(rows, face_parts[chunk], colours).tobytes())


def _coloured(rows: np.ndarray, parts: np.ndarray, colours: np.ndarray) -> np.ndarray:
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = colours[parts, channel]
    rows["part"] = parts
    return rows


def _one_line(name: str) -> str:
    return " ".join(name.split()).encode("ascii", "replace").decode()
