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
from shared_attn.shapes.raster import covered_samples, pick, planes, visible_faces

CAMERA = 3.4  # distance from the centre, in radii of the thing
TIE = 1e-6  # keeps values that stand exactly between two levels from rounding differently on another machine
BATCH = 600_000  # samples at once: what stays in the processor's cache is faster


def render(
    meshes: Sequence[LabelledMesh], seeds: Sequence[int | str], *, size: int = 32, oversample: int = 3
) -> Tensor:
    """Pictures (B, 3, size, size) uint8 of meshes, each with view, colours, light and background of its own seed.

    oversample squared samples are averaged for each pixel. ValueError for a size or oversample below 1, or where the
    numbers of meshes and seeds differ.
    """
    if size < 1 or oversample < 1:
        raise ValueError(f"size and oversample must be at least 1, got {size} and {oversample}")
    if len(meshes) != len(seeds):
        raise ValueError(f"one seed a mesh is needed, got {len(seeds)} for {len(meshes)} meshes")
    looks = []
    for mesh, seed in zip(meshes, seeds, strict=True):
        parts = torch.zeros(int(mesh.solid[-1]) + 1, dtype=torch.int64).scatter_(0, mesh.solid, mesh.part)
        looks.append(draw_look(Draw("look", seed), mesh.class_name, parts.tolist()))
    step = max(1, BATCH // (size * oversample) ** 2)
    batches = [
        _render_batch(meshes[i : i + step], looks[i : i + step], size, oversample) for i in range(0, len(meshes), step)
    ]
    return torch.cat(batches) if batches else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _direction(yaw: Tensor, elevation: Tensor) -> Tensor:
    """(B, 3) unit vectors towards something at the given angles in degrees; yaw 0 is the front, -y."""
    yaw, elevation = torch.deg2rad(yaw), torch.deg2rad(elevation)
    return torch.stack([yaw.sin() * elevation.cos(), -yaw.cos() * elevation.cos(), elevation.sin()], 1)


@dataclass(frozen=True)
class Camera:
    """B pinhole cameras that look at the origin.

    axes (B, 3, 3) right, up, back; scale (B,) and centre (B, 2) of the picture in samples.
    """

    axes: Tensor
    scale: Tensor
    centre: Tensor

    def project(self, points: Tensor, owner: Tensor) -> Tensor:
        """Points (V, 3) of pictures owner (V,) -> (V, 3) column, row and nearness (one over the distance)."""
        x, y, z = points.unbind(1)
        right, up, back = pick(self.axes, owner).permute(1, 2, 0)  # (3, V) each
        near = 1 / (CAMERA - (back[0] * x + back[1] * y + back[2] * z)).clamp(min=0.5)
        scale = near * pick(self.scale, owner)
        column, row = pick(self.centre, owner).unbind(1)
        column = column + scale * (right[0] * x + right[1] * y + right[2] * z)
        row = row - scale * (up[0] * x + up[1] * y + up[2] * z)
        return torch.stack([column, row, near], 1)


def _aim(vertices: Tensor, owner: Tensor, view: Tensor, extent: Tensor, centre: Tensor) -> Camera:
    """Cameras from the directions view (B, 3): the thing is `extent` (B,) samples long, around `centre` (B, 2).

    A thing that would fill a square is made smaller than a thin one.
    """
    B = len(view)
    right = torch.stack([-view[:, 1], view[:, 0], torch.zeros(B, dtype=torch.float64)], 1)
    right = right / right.norm(dim=1, keepdim=True)
    axes = torch.stack([right, torch.linalg.cross(view, right), view], 1)
    plain = Camera(axes, torch.ones(B, dtype=torch.float64), torch.zeros(B, 2, dtype=torch.float64))
    flat = plain.project(vertices, owner)[:, :2]
    index = owner[:, None].expand(-1, 2)
    low = torch.full((B, 2), torch.inf, dtype=torch.float64).scatter_reduce_(0, index, flat, "amin")
    high = torch.full((B, 2), -torch.inf, dtype=torch.float64).scatter_reduce_(0, index, flat, "amax")
    wide, tall = (high - low).unbind(1)
    scale = extent / torch.stack([wide, tall, 1.15 * (wide * tall).sqrt()]).amax(0)
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
    length: Tensor = total.norm(dim=2, keepdim=True)
    return total / length.clamp(min=1e-12)


def _render_batch(meshes: Sequence[LabelledMesh], looks: Sequence[Look], size: int, oversample: int) -> Tensor:
    """The pictures of one batch."""
    B, n = len(meshes), size * oversample

    def number(name: str) -> Tensor:
        return torch.tensor([getattr(look, name) for look in looks], dtype=torch.float64)

    counts = torch.tensor([[len(mesh.vertices), len(mesh.faces), int(mesh.solid[-1]) + 1] for mesh in meshes])
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
    corners = pick(corners, front)
    sample, face = visible_faces(corners, pick(picture, front), B, n)
    slopes = pick(planes(corners, pick(corner_normals, front)), face)  # (S, 3, 3)
    column, row = (sample % n)[:, None], (sample // n % n)[:, None]
    normal = slopes[:, 0] + slopes[:, 1] * column + slopes[:, 2] * row

    face = pick(front, face)
    paint = torch.tensor([paint for look in looks for paint in look.paints], dtype=torch.float64)
    shaded = _shade(normal, pick(paint, pick(solid, face)), pick(picture, face), view, light, number("ambient"))
    image = torch.zeros(4, B * n * n, dtype=torch.float64)
    image[3, sample] = 1.0
    for channel, value in enumerate(shaded):
        image[channel, sample] = value
    image = F.avg_pool2d(image.reshape(4, B, n, n), oversample)  # (4, B, size, size)
    shadow = number("shadow")[:, None, None] * _shadow(vertices, faces, owner, picture, light, camera, size, n)
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)[:, None]
    upper, lower = number("backdrop").permute(1, 2, 0)[..., None, None]  # (3, B, 1, 1) each
    ground = (upper * (1 - ramp) + lower * ramp) * (1 - shadow)
    result: Tensor = image[:3] + ground * (1 - image[3])  # (3, B, size, size)
    return (result.clamp(0, 1) * 255 + 0.5 + TIE).floor().to(torch.uint8).transpose(0, 1).contiguous()


def _shade(
    normal: Tensor, paint: Tensor, picture: Tensor, view: Tensor, light: Tensor, ambient: Tensor
) -> list[Tensor]:
    """Three channels (S,) under a soft light: sky and ground, a lamp that reaches round edges, a highlight.

    normal (S, 3) of any length; paint (S, 4) colour and gloss; picture (S,); view and light (B, 3); ambient (B,).
    """
    half = light + view
    half = half / half.norm(dim=1, keepdim=True)
    scene = torch.cat([light, half, ambient[:, None]], 1)[picture]  # (S, 7)
    x, y, z = normal.unbind(1)
    length = (x * x + y * y + z * z).sqrt().clamp(min=1e-12)
    lamp = (0.75 * (x * scene[:, 0] + y * scene[:, 1] + z * scene[:, 2]) / length + 0.25).clamp(min=0)
    brightness = scene[:, 6] * (0.8 + 0.2 * z / length) + (1.08 - scene[:, 6]) * lamp
    shine = ((x * scene[:, 3] + y * scene[:, 4] + z * scene[:, 5]) / length).clamp(min=0)
    shine = 0.75 * paint[:, 3] * (shine**4) ** 7
    return [(paint[:, channel] * brightness + shine).clamp(0, 1) for channel in range(3)]


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
    shadow = F.avg_pool2d(mask.reshape(B, 1, n, n), n // size)
    reach = max(1, size // 32)
    for _ in range(2):
        shadow = F.avg_pool2d(shadow, 2 * reach + 1, 1, reach)
    return shadow[:, 0]
