"""Points on the surface of a mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from shared_attn.shapes.mesh import LabelledMesh, face_normals


def sample_surface(mesh: LabelledMesh, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draws points evenly over the area of a mesh.

    Returns points (count, 3) float64, their outward unit normals (count, 3) float64 and global part ids (count,)
    int64. ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    normals = face_normals(mesh.vertices, mesh.faces)
    twice_area = normals.norm(dim=1)
    edge = twice_area.cumsum(0)
    draws = torch.rand(count, 3, dtype=torch.float64, generator=generator)
    face = torch.searchsorted(edge, draws[:, 0].contiguous() * edge[-1], right=True).clamp(max=len(edge) - 1)
    root = draws[:, 1:2].sqrt()  # even over the triangle (Osada et al., Shape distributions, 2002, eq. 1)
    a, b, c = mesh.vertices[mesh.faces[face]].unbind(1)
    points = (1 - root) * a + root * (1 - draws[:, 2:]) * b + root * draws[:, 2:] * c
    return points, normals[face] / twice_area[face, None], mesh.part[face]
