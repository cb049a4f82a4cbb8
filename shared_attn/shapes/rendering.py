"""Small colour pictures of meshes: perspective, z-buffer, smooth shading, a ground shadow, averaged samples.

Legend: B pictures, V vertices, F faces, S samples, n samples a side (size * oversample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.shapes.draw import Draw
from shared_attn.shapes.materials import Look, draw_look
from shared_attn.shapes.mesh import LabelledMesh, face_normals
from shared_attn.shapes.primitives import GROUPS
from shared_attn.shapes.raster import covered_samples, visible_faces

CAMERA = 3.4  # distance from the centre, in radii of the thing
TIE = 1e-6  # keeps values that stand exactly between two levels from rounding differently on another machine
BATCH = 64  # pictures at once: what stays in the processor's cache is faster


def render(
    meshes: Sequence[LabelledMesh], seeds: Sequence[int | str], *, size: int = 32, oversample: int = 3
) -> Tensor:
    """Pictures (B, 3, size, size) uint8 of meshes, each with view, colours, light and background of its own seed.

    oversample squared samples are averaged for each pixel. ValueError for a size or oversample below 1, or as many
    seeds as meshes are not given.
    """
    if size < 1 or oversample < 1:
        raise ValueError(f"size and oversample must be at least 1, got {size} and {oversample}")
    if len(meshes) != len(seeds):
        raise ValueError(f"one seed a mesh is needed, got {len(seeds)} for {len(meshes)} meshes")
    looks = []
    for mesh, seed in zip(meshes, seeds, strict=True):
        parts = torch.zeros(int(mesh.solid[-1]) + 1, dtype=torch.int64).scatter_(0, mesh.solid, mesh.part)
        looks.append(draw_look(Draw("look", seed), mesh.class_name, parts.tolist()))
    batches = [
        _render_batch(meshes[i : i + BATCH], looks[i : i + BATCH], size, oversample)
        for i in range(0, len(meshes), BATCH)
    ]
    return torch.cat(batches) if batches else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _direction(yaw: Tensor, elevation: Tensor) -> Tensor:
    """(B, 3) unit vectors towards something at the given angles in degrees; yaw 0 is the front, -y."""
    yaw, elevation = torch.deg2rad(yaw), torch.deg2rad(elevation)
    return torch.stack([yaw.sin() * elevation.cos(), -yaw.cos() * elevation.cos(), elevation.sin()], 1)


@dataclass(frozen=True)
class Camera:
    """B pinhole cameras that look at the origin: axes (B, 3, 3) right, up, back; scale (B,) and centre (B, 2) in samples."""

    axes: Tensor
    scale: Tensor
    centre: Tensor

    def project(self, points: Tensor, owner: Tensor) -> Tensor:
        """Points (V, 3) of pictures owner (V,) -> (V, 3) column, row and nearness (one over the distance)."""
        seen = (self.axes[owner] * points[:, None]).sum(2)
        near = 1 / (CAMERA - seen[:, 2]).clamp(min=0.5)
        column = self.centre[owner, 0] + seen[:, 0] * near * self.scale[owner]
        row = self.centre[owner, 1] - seen[:, 1] * near * self.scale[owner]
        return torch.stack([column, row, near], 1)


def _aim(vertices: Tensor, owner: Tensor, view: Tensor, extent: Tensor, centre: Tensor) -> Camera:
    """Cameras from the directions view (B, 3) in which every thing is `extent` (B,) samples large around `centre` (B, 2)."""
    B = len(view)
    right = torch.stack([-view[:, 1], view[:, 0], torch.zeros(B, dtype=torch.float64)], 1)
    right = right / right.norm(dim=1, keepdim=True)
    axes = torch.stack([right, torch.linalg.cross(view, right), view], 1)
    plain = Camera(axes, torch.ones(B, dtype=torch.float64), torch.zeros(B, 2, dtype=torch.float64))
    flat = plain.project(vertices, owner)[:, :2]
    index = owner[:, None].expand(-1, 2)
    low = torch.full((B, 2), torch.inf, dtype=torch.float64).scatter_reduce_(0, index, flat, "amin")
    high = torch.full((B, 2), -torch.inf, dtype=torch.float64).scatter_reduce_(0, index, flat, "amax")
    scale = extent / (high - low).amax(1)
    return Camera(axes, scale, centre - scale[:, None] * (low + high) / 2)


def _corner_normals(vertices: Tensor, faces: Tensor, smooth: Tensor, normals: Tensor) -> Tensor:
    """(F, 3, 3) normals at the corners: of the face itself, or the sum over its smoothing group at that vertex."""
    slot = faces * GROUPS + smooth.clamp(min=0)[:, None]  # (F, 3)
    flat = (smooth < 0)[:, None]
    slot = torch.where(flat, len(vertices) * GROUPS, slot).reshape(-1)
    sums = [
        torch.bincount(slot, normals[:, i].repeat_interleave(3), len(vertices) * GROUPS + 1)[slot] for i in range(3)
    ]
    total = torch.stack(sums, 1).reshape(-1, 3, 3)
    total = torch.where(flat[..., None], normals[:, None], total)
    return total / total.norm(dim=2, keepdim=True).clamp(min=1e-12)


def _planes(corners: Tensor, values: Tensor) -> Tensor:
    """(F, 3, C): value at sample (0, 0), per column and per row of C quantities given at triangles' corners (F, 3, C)."""
    a, b, c = corners.unbind(1)
    ab, ac = b - a, c - a
    area = (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])[:, None]
    v, vb, vc = values[:, 0], values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    right = (vb * ac[:, 1:2] - vc * ab[:, 1:2]) / area
    down = (vc * ab[:, 0:1] - vb * ac[:, 0:1]) / area
    base = v - right * (a[:, 0:1] - 0.5) - down * (a[:, 1:2] - 0.5)
    return torch.stack([base, right, down], 1)


def _render_batch(meshes: Sequence[LabelledMesh], looks: Sequence[Look], size: int, oversample: int) -> Tensor:
    """The pictures of one batch."""
    B, n = len(meshes), size * oversample

    def number(name: str) -> Tensor:
        return torch.tensor([getattr(look, name) for look in looks], dtype=torch.float64)

    counts = torch.tensor([[len(mesh.vertices), len(mesh.faces), len(look.colours)] for mesh, look in zip(meshes, looks, strict=True)])
    starts = counts.cumsum(0) - counts
    owner = torch.repeat_interleave(torch.arange(B), counts[:, 0])  # picture of each vertex
    picture = torch.repeat_interleave(torch.arange(B), counts[:, 1])  # picture of each face
    vertices = torch.cat([mesh.vertices for mesh in meshes])
    faces = torch.cat([mesh.faces for mesh in meshes]) + starts[picture, 0, None]
    solid = torch.cat([mesh.solid for mesh in meshes]) + starts[picture, 2]

    view = _direction(number("yaw"), number("elevation"))
    light = _direction(number("light_yaw"), number("light_elevation"))
    camera = _aim(vertices, owner, view, number("fill") * n, (0.5 + number("shift")) * n)
    screen = camera.project(vertices, owner)

    corners = screen[faces]
    ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    front = (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0] < -1e-12).nonzero().squeeze(1)  # rows run downwards
    normals = face_normals(vertices, faces)
    corner_normals = _corner_normals(vertices, faces, torch.cat([mesh.smooth for mesh in meshes]), normals)
    sample, face = visible_faces(corners[front], picture[front], B, n)
    planes = _planes(corners[front], corner_normals[front])[face]  # (S, 3, 3)
    column, row = (sample % n)[:, None], (sample // n % n)[:, None]
    normal = planes[:, 0] + planes[:, 1] * column + planes[:, 2] * row
    normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-12)

    chosen = front[face]
    colour = torch.tensor([colour for look in looks for colour in look.colours], dtype=torch.float64)[solid[chosen]]
    gloss = torch.tensor([gloss for look in looks for gloss in look.gloss], dtype=torch.float64)[solid[chosen]]
    shaded = _shade(normal, colour, gloss, picture[chosen], view, light, number("ambient"))

    image = torch.zeros(B * n * n, 4, dtype=torch.float64)
    image[sample, :3], image[sample, 3] = shaded, 1.0
    image = image.reshape(B, size, oversample, size, oversample, 4).mean((2, 4))
    shadow = number("shadow")[:, None, None] * _shadow(vertices, faces, owner, picture, light, camera, size, n)
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)[:, None, None]
    backdrop = torch.tensor([look.backdrop for look in looks], dtype=torch.float64)[:, :, None, None]  # (B, 2, 1, 1, 3)
    ground = (backdrop[:, 0] * (1 - ramp) + backdrop[:, 1] * ramp) * (1 - shadow[..., None])
    result = image[..., :3] + ground * (1 - image[..., 3:])
    return (result.clamp(0, 1) * 255 + 0.5 + TIE).floor().to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def _shade(
    normal: Tensor, colour: Tensor, gloss: Tensor, picture: Tensor, view: Tensor, light: Tensor, ambient: Tensor
) -> Tensor:
    """(S, 3) colours under a soft light: sky and ground light, a lamp that reaches round edges, a highlight."""
    half = light + view
    half = half / half.norm(dim=1, keepdim=True)
    lamp = (0.75 * (normal * light[picture]).sum(1) + 0.25).clamp(min=0)
    level = ambient[picture]
    brightness = level * (0.8 + 0.2 * normal[:, 2]) + (1.08 - level) * lamp
    shine = gloss * (normal * half[picture]).sum(1).clamp(min=0) ** 28
    return (colour * brightness[:, None] + 0.75 * shine[:, None]).clamp(0, 1)


def _shadow(
    vertices: Tensor, faces: Tensor, owner: Tensor, picture: Tensor, light: Tensor, camera: Camera, size: int, n: int
) -> Tensor:
    """(B, size, size) share of each pixel that lies in the shadow on the ground beneath the thing, edges softened."""
    B = len(light)
    floor = torch.full((B,), torch.inf, dtype=torch.float64).scatter_reduce_(0, owner, vertices[:, 2], "amin")
    rays = light[owner]
    fall = ((vertices[:, 2] - floor[owner]) / rays[:, 2])[:, None]
    corners = camera.project(vertices - fall * rays, owner)[faces]
    face, column, row = covered_samples(corners, n)
    mask = torch.zeros(B * n * n, dtype=torch.float64)
    mask[(picture[face] * n + row) * n + column] = 1.0
    shadow = mask.reshape(B, size, n // size, size, n // size).mean((2, 4))
    reach = max(1, size // 32)
    for _ in range(2):
        shadow = F.avg_pool2d(shadow[:, None], 2 * reach + 1, 1, reach)[:, 0]
    return shadow
