"""Closed solids of triangles: every one is a loft, a row of rings joined side by side and closed at both ends.

Legend: R rings, S corners of a ring, V vertices, F faces. z is up. Lengths are free, because a shape is scaled when it
is assembled, and orientation need not be minded: assembly turns every solid's faces outward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Point = Sequence[float]
CREASE = math.radians(38)  # a sharper turn is an edge, a gentler one is shaded smooth
FLAT = -1  # smoothing group of faces that are shaded with their own normal
GROUPS = 4  # groups 0..3: faces that share a vertex and a group share its normal


@dataclass(frozen=True)
class Solid:
    """A closed triangle mesh: vertices (V, 3) float64, faces (F, 3) int64, smooth (F,) int64 smoothing groups."""

    vertices: Tensor
    faces: Tensor
    smooth: Tensor

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
        """The solid displaced."""
        return Solid(self.vertices + torch.tensor([x, y, z], dtype=torch.float64), self.faces, self.smooth)

    def stretch(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Solid:
        """The solid scaled about the origin; a negative factor mirrors it."""
        return Solid(self.vertices * torch.tensor([x, y, z], dtype=torch.float64), self.faces, self.smooth)

    def turn(self, axis: str, degrees: float) -> Solid:
        """The solid rotated about the axis "x", "y" or "z" through the origin, counter-clockwise seen from its tip."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        columns = list(self.vertices.unbind(1))
        columns[i], columns[j] = columns[i] * cos - columns[j] * sin, columns[i] * sin + columns[j] * cos
        return Solid(torch.stack(columns, 1), self.faces, self.smooth)


def _alternate(creases: Sequence[bool], loop: bool) -> tuple[int, ...]:
    """Groups of consecutive strips: a new one where a crease stands before a strip, never the same on both its sides.

    A loop with a single crease has but one group, so that crease is smoothed.
    """
    first = creases.index(True) if loop and True in creases else 0
    section = [0] * len(creases)
    count = 1
    for number in [*range(first + 1, len(creases)), *range(first)]:
        count += creases[number]
        section[number] = count - 1
    third = count - 1 if loop and count % 2 and count > 1 else None
    return tuple(2 if number == third else number % 2 for number in section)


@lru_cache(maxsize=512)
def _topology(
    R: int, S: int, loop: bool, bands: tuple[int, ...], sides: tuple[int, ...], tips: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Faces and smoothing groups of a loft: quads split in two, then fans to the start and end points (no loop)."""
    faces: list[tuple[int, int, int]] = []
    groups: list[int] = []
    for i, band in enumerate(bands):
        for j in range(S):
            a, b = i * S + j, i * S + (j + 1) % S
            d, c = (i + 1) % R * S + j, (i + 1) % R * S + (j + 1) % S
            faces += [(a, b, c), (a, c, d)]
            groups += 2 * [band if band == FLAT or not sides else sides[j]]
    if not loop:
        last = (R - 1) * S
        for j in range(S):
            k = (j + 1) % S
            faces += [(R * S, k, j), (R * S + 1, last + j, last + k)]
            groups += tips
    return torch.tensor(faces), torch.tensor(groups)


def loft(
    rings: Tensor,
    *,
    loop: bool = False,
    bands: tuple[int, ...] = (),
    sides: tuple[int, ...] = (),
    start: Tensor | None = None,
    end: Tensor | None = None,
    tips: tuple[int, int] = (FLAT, FLAT),
) -> Solid:
    """Joins rings (R, S, 3) into one solid.

    loop joins the last ring to the first; otherwise both ends are closed by fans to `start` and `end` (default: the
    ring's centre, a flat cap). Smoothing groups: `bands` one a pair of rings (default: all smooth), `sides` one a
    side of the ring (where given, they replace the bands' groups unless these are flat), `tips` for both fans.
    """
    R, S, _ = rings.shape
    bands = bands or (0,) * (R if loop else R - 1)
    faces, smooth = _topology(R, S, loop, bands, sides, tips)
    vertices = rings.reshape(R * S, 3)
    if not loop:
        start = rings[0].mean(0) if start is None else start
        end = rings[-1].mean(0) if end is None else end
        vertices = torch.cat([vertices, start[None], end[None]])
    return Solid(vertices, faces, smooth)


@lru_cache(maxsize=64)
def _circle(segments: int) -> Tensor:
    """(S, 2) unit circle; starts half a side off the x axis, so that four segments are a square with straight sides."""
    angle = (torch.arange(segments, dtype=torch.float64) + 0.5) * (2 * math.pi / segments)
    return torch.stack([angle.cos(), angle.sin()], 1)


def curve(points: Sequence[Point], steps: int = 4, loop: bool = False) -> list[tuple[float, ...]]:
    """Smooth curve (Catmull-Rom) through control points of any dimension, in `steps` pieces a span."""
    count = len(points)
    spans = count if loop else count - 1
    result: list[tuple[float, ...]] = []
    for i in range(spans):
        a, b, c, d = (points[k % count if loop else min(max(k, 0), count - 1)] for k in (i - 1, i, i + 1, i + 2))
        for step in range(steps):
            t = step / steps
            result.append(
                tuple(
                    q + 0.5 * t * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * (3 * (q - r) + s - p)))
                    for p, q, r, s in zip(a, b, c, d, strict=True)
                )
            )
    return result if loop else [*result, tuple(points[-1])]


def _turns(points: Sequence[Point], loop: bool) -> list[bool]:
    """For each piece of a polyline in the plane: is there a crease where it begins?"""
    count = len(points)
    pieces = count if loop else count - 1
    angles = [
        math.atan2(points[(i + 1) % count][1] - points[i][1], points[(i + 1) % count][0] - points[i][0])
        for i in range(pieces)
    ]
    return [abs(math.remainder(angles[i] - angles[i - 1], 2 * math.pi)) > CREASE for i in range(pieces)]


def revolve(profile: Sequence[Point], segments: int = 16, loop: bool = False) -> Solid:
    """Turns a profile of (radius, z) around the z axis.

    An end with radius 0 is a tip; another end is closed by a flat cap. With loop the profile is a closed outline
    (a ring such as a lampshade with its wall). Sharp corners of the profile stay edges.
    """
    turns = _turns(profile, loop)
    first, last = (not loop and profile[0][0] == 0.0), (not loop and profile[-1][0] == 0.0)
    groups = list(_alternate(turns, loop))
    tips = (groups[0] if first else FLAT, groups[-1] if last else FLAT)
    bands = tuple(groups[1 if first else 0 : -1 if last else None])
    inner = torch.tensor(profile[1 if first else 0 : -1 if last else None], dtype=torch.float64)
    radius, z = inner.unbind(1)
    R, S = len(inner), segments
    rings = torch.empty(R, S, 3, dtype=torch.float64)
    rings[..., :2] = radius[:, None, None] * _circle(segments)
    rings[..., 2] = z[:, None]
    if loop:
        return loft(rings, loop=True, bands=bands)
    ends = torch.tensor([[0.0, 0.0, profile[0][1]], [0.0, 0.0, profile[-1][1]]], dtype=torch.float64)
    return loft(rings, bands=bands, start=ends[0], end=ends[1], tips=tips)


def radius_at(profile: Sequence[Point], z: float) -> float:
    """Radius of a rising profile at the height z, or at its end where z lies beyond."""
    for (r0, z0), (r1, z1) in zip(profile, profile[1:], strict=False):
        if z0 <= z <= z1 and z0 < z1:
            return r0 + (r1 - r0) * (z - z0) / (z1 - z0)
    return profile[-1 if z > profile[0][1] else 0][0]


def cylinder(radius: float, low: float, high: float, *, top: float | None = None, segments: int = 14) -> Solid:
    """Cylinder, or frustum with radius `top` at its upper end, around the z axis from low to high."""
    return revolve([(radius, low), (radius if top is None else top, high)], segments)


def ball(x: float, y: float, z: float, segments: int = 12, rings: int = 6) -> Solid:
    """Ellipsoid around the origin with the given half axes."""
    angles = [math.pi * i / rings for i in range(1, rings)]
    return revolve([(0.0, -1.0), *((math.sin(a), -math.cos(a)) for a in angles), (0.0, 1.0)], segments).stretch(x, y, z)


def box(x: float, y: float, z: float, *, taper: Point = (1.0, 1.0), lean: Point = (0.0, 0.0)) -> Solid:
    """Box of full sizes x, y, z standing on the plane z = 0; its top is scaled by taper and displaced by lean."""
    corners = torch.tensor([[x, y], [-x, y], [-x, -y], [x, -y]], dtype=torch.float64) / 2
    rings = torch.zeros(2, 4, 3, dtype=torch.float64)
    rings[0, :, :2] = corners
    rings[1, :, :2] = corners * torch.tensor(list(taper), dtype=torch.float64) + torch.tensor(
        list(lean), dtype=torch.float64
    )
    rings[1, :, 2] = z
    return loft(rings, bands=(FLAT,))


def cushion(x: float, y: float, z: float, radius: float) -> Solid:
    """Box of full sizes x, y, z standing on the plane z = 0 with round edges (a box swelled by a ball)."""
    radius = min(radius, 0.49 * x, 0.49 * y, 0.49 * z)
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    centres = corners * torch.tensor([x / 2 - radius, y / 2 - radius], dtype=torch.float64)
    arc = torch.tensor([[0.0, 45.0, 90.0], [90.0, 135.0, 180.0], [180.0, 225.0, 270.0], [270.0, 315.0, 360.0]])
    angle = torch.deg2rad(arc.double())
    around = torch.stack([angle.cos(), angle.sin()], 2)  # (4, 3, 2)
    rings = torch.empty(4, 12, 3, dtype=torch.float64)
    for ring, (out, up) in enumerate([(0.4, 0.0), (1.0, 0.6), (1.0, -0.6), (0.4, 0.0)]):
        rings[ring, :, :2] = (centres[:, None] + radius * out * around).reshape(12, 2)
        rings[ring, :, 2] = radius * up if ring < 2 else z + radius * up
    return loft(rings, tips=(0, 0))


def extrude(outline: Sequence[Point], height: float, *, top: float = 1.0, bevel: float = 0.0) -> Solid:
    """Raises an outline of (x, y) that its centre sees wholly by height from the plane z = 0.

    top scales the upper face about the outline's centre; bevel shrinks both faces by that share over the same share
    of the height. Sharp corners of the outline stay edges.
    """
    flat = torch.tensor(outline, dtype=torch.float64)
    centre = flat.mean(0)
    levels = [(1.0, 0.0), (top, 1.0)]
    if bevel:
        levels = [(1 - bevel, 0.0), (1.0, bevel), (top, 1 - bevel), (top * (1 - bevel), 1.0)]
    rings = torch.empty(len(levels), len(flat), 3, dtype=torch.float64)
    for ring, (scale, z) in enumerate(levels):
        rings[ring, :, :2] = centre + (flat - centre) * scale
        rings[ring, :, 2] = z * height
    return loft(rings, sides=_alternate(_turns(outline, True), True))


def tube(
    path: Sequence[Point],
    radius: float | Sequence[float],
    *,
    segments: int = 8,
    across: Point = (0.0, 1.0, 0.0),
    aspect: float = 1.0,
    loop: bool = False,
    square: bool = False,
) -> Solid:
    """Sweeps a circle (square: a square) along a path of points.

    radius is one number or one a point. `across` is a direction the path never takes (a plane path's normal): along
    it the section is `aspect` times as wide. loop closes the path.
    """
    line = torch.tensor(path, dtype=torch.float64)
    if loop:
        ahead, behind = line.roll(-1, 0), line.roll(1, 0)
    else:
        ahead, behind = torch.cat([line[1:], line[-1:]]), torch.cat([line[:1], line[:-1]])
    along = ahead - behind
    first = torch.linalg.cross(torch.tensor(across, dtype=torch.float64).expand_as(along), along)
    first = first / first.norm(dim=1, keepdim=True)
    second = torch.linalg.cross(along, first)
    second = second / second.norm(dim=1, keepdim=True)
    width = torch.as_tensor(radius, dtype=torch.float64).expand(len(line))[:, None, None]
    section = _circle(4 if square else segments) * (math.sqrt(2) if square else 1.0)
    rings = line[:, None] + width * (
        section[:, :1] * first[:, None] + aspect * section[:, 1:] * second[:, None]
    )  # (R, S, 3)
    return loft(rings, loop=loop, sides=_alternate([True] * 4, True) if square else ())


def rod(start: Point, end: Point, radius: float, top: float | None = None, *, segments: int = 8) -> Solid:
    """Straight bar between two points with radius at the start and `top` at the end; four segments: a square bar."""
    spread = [abs(b - a) for a, b in zip(start, end, strict=True)]
    across = [0.0, 0.0, 0.0]
    across[spread.index(min(spread))] = 1.0
    square = segments == 4
    return tube([start, end], [radius, radius if top is None else top], segments=segments, across=across, square=square)


def arc(centre: Point, radius: Point, begin: float, stop: float, steps: int) -> list[tuple[float, float]]:
    """Points on an ellipse around centre from the angle begin to stop (degrees), both included."""
    angles = [math.radians(begin + (stop - begin) * i / steps) for i in range(steps + 1)]
    return [(centre[0] + radius[0] * math.cos(a), centre[1] + radius[1] * math.sin(a)) for a in angles]
