"""A labelled triangle mesh, put together from solids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared_attn.shapes.primitives import Solid


@dataclass(frozen=True)
class LabelledMesh:
    """Closed solids, each face of which belongs to a part.

    vertices (V, 3) float64 around the surface's centroid, in the unit ball, z up, front towards -y; faces (F, 3)
    int64, counter-clockwise seen from outside; part (F,) int64 global part ids (index into PART_NAMES); solid (F,)
    int64 number of the closed solid a face belongs to; smooth (F,) int64 smoothing group, see primitives.GROUPS.
    """

    vertices: Tensor
    faces: Tensor
    part: Tensor
    solid: Tensor
    smooth: Tensor
    class_name: str

    def save(self, path: str | Path) -> None:
        """Writes an OFF file (text, geometry alone); OSError where it cannot be written."""
        lines = ["OFF", f"{len(self.vertices)} {len(self.faces)} 0"]
        lines += [f"{x:.7f} {y:.7f} {z:.7f}" for x, y, z in self.vertices.tolist()]
        lines += [f"3 {a} {b} {c}" for a, b, c in self.faces.tolist()]
        Path(path).write_text("\n".join(lines) + "\n", encoding="ascii")


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(F, 3) normals of triangles, as long as twice their area."""
    a, b, c = vertices[faces].unbind(1)
    normals: Tensor = torch.linalg.cross(b - a, c - a)
    return normals


def assemble(class_name: str, pieces: Iterable[tuple[int, Solid]]) -> LabelledMesh:
    """Joins (global part id, solid) pairs; turns all faces outward, centres the surface, scales it to radius 1."""
    parts, solids = zip(*pieces, strict=True)
    sizes = torch.tensor([len(solid.faces) for solid in solids])
    starts = torch.tensor([0] + [len(solid.vertices) for solid in solids]).cumsum(0)[:-1]
    number = torch.repeat_interleave(torch.arange(len(solids)), sizes)
    vertices = torch.cat([solid.vertices for solid in solids])
    faces = torch.cat([solid.faces for solid in solids]) + starts[number, None]

    normals = face_normals(vertices, faces)
    middle = vertices[faces].mean(1)  # (F, 3)
    volume = torch.bincount(number, (normals * middle).sum(1), len(solids))  # six times the signed volume
    faces = torch.where((volume < 0)[number, None], faces.flip(1), faces)

    area = normals.norm(dim=1, keepdim=True)
    vertices = vertices - (area * middle).sum(0) / area.sum()
    vertices = vertices / vertices.norm(dim=1).max()
    smooth = torch.cat([solid.smooth for solid in solids])
    return LabelledMesh(vertices, faces, torch.tensor(parts)[number], number, smooth, class_name)
