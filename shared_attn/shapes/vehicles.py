"""Aeroplanes, cars and rockets. Each function draws one sample: pairs of part name and solid; they head for -y."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from shared_attn.shapes.draw import Draw
from shared_attn.shapes.primitives import (
    Solid,
    arc,
    ball,
    box,
    curve,
    cylinder,
    extrude,
    loft,
    radius_at,
    revolve,
    tube,
)

Pieces = Iterator[tuple[str, Solid]]


def blade(root: float, tip: float, span: float, sweep: float, rise: float, thick: float) -> Solid:
    """Wing or fin that grows along +x: chords root and tip, its tip displaced by sweep (towards +y) and rise (+z)."""
    section = [[-0.5, 0.0], [-0.25, 0.5], [0.2, 0.4], [0.5, 0.0], [0.2, -0.4], [-0.25, -0.5]]
    shape = torch.tensor(section, dtype=torch.float64)
    rings = torch.zeros(2, 6, 3, dtype=torch.float64)
    for ring, (chord, x, y, z) in enumerate([(root, 0.0, 0.0, 0.0), (tip, span, sweep, rise)]):
        rings[ring, :, 0] = x
        rings[ring, :, 1] = y + chord * shape[:, 0]
        rings[ring, :, 2] = z + thick * (0.4 + 0.6 * chord / root) * shape[:, 1]
    return loft(rings)


def both(solid: Solid) -> Iterator[Solid]:
    """The solid and its mirror image in the plane x = 0."""
    yield solid
    yield solid.stretch(x=-1)


def aeroplane(draw: Draw) -> Pieces:
    """Airliners, propeller planes and fighters: body, wings, tail and engines."""
    kind = draw.choice("liner", "liner", "propeller", "fighter")
    length = draw.uniform(1.7, 2.3)
    radius = length * {"liner": draw.uniform(0.05, 0.075), "propeller": 0.075, "fighter": 0.05}[kind]
    nose = {"liner": 0.1, "propeller": 0.08, "fighter": 0.3}[kind]
    front, back = -length / 2, length / 2
    profile = [
        (0.0, front), (radius * 0.55, front + nose * length * 0.2), (radius, front + nose * length),
        (radius, back - length * draw.uniform(0.3, 0.4)), (radius * 0.55, back - length * 0.12),
        (radius * (0.5 if kind == "fighter" else 0.15), back),
    ]  # fmt: skip
    hull = revolve(profile, 14).turn("x", -90)
    yield "body", hull.stretch(z=-draw.uniform(0.95, 1.2))
    if kind != "liner":
        yield (
            "body",
            ball(radius * 0.6, length * 0.12, radius * 0.8, 10, 6).move(y=front + length * 0.33, z=radius * 0.8),
        )

    span, root = length * draw.uniform(0.4, 0.55), length * draw.uniform(0.15, 0.22)
    sweep, tip, at = span * draw.uniform(0.25, 0.6), root * draw.uniform(0.25, 0.45), -0.05 * length
    high = draw.choice(-0.5, -0.5, 0.0, 0.7) * radius
    if kind == "propeller":
        sweep, tip, at = span * draw.uniform(0.0, 0.08), root * draw.uniform(0.6, 1.0), front + length * 0.36
    elif kind == "fighter":
        span, root = length * draw.uniform(0.25, 0.35), length * draw.uniform(0.3, 0.45)
        tip, at = root * draw.uniform(0.1, 0.3), length * 0.1
        sweep = (root - tip) * draw.uniform(0.3, 0.5)
    rise = span * draw.uniform(0.0, 0.14)
    wing = blade(root, tip, span, sweep, rise, 0.1 * root if kind != "fighter" else 0.035).move(y=at, z=high)
    for solid in both(wing):
        yield "wing", solid
    if kind == "propeller" and draw.chance(0.35):
        for solid in both(blade(root, tip, span, sweep, 0.0, 0.1 * root).move(y=at, z=high + 3.2 * radius)):
            yield "wing", solid
        for solid in both(cylinder(0.012, high, high + 3.2 * radius, segments=6).move(span * 0.6, at)):
            yield "wing", solid
    yield from _tail(draw, kind, length, radius)
    yield from _engines(draw, kind, (front, back, radius), (span, sweep, rise, at, high))


def _tail(draw: Draw, kind: str, length: float, radius: float) -> Pieces:
    """Fin and tailplane; some fighters have two fins, some airliners a T-tail."""
    back = length / 2
    tall, root = length * draw.uniform(0.13, 0.2), length * draw.uniform(0.11, 0.16)
    fin = blade(root, root * draw.uniform(0.4, 0.65), tall, root * draw.uniform(0.3, 0.8), 0.0, 0.03)
    fin = fin.turn("y", -90).move(y=back - root * 0.6, z=radius * 0.3)
    if kind == "fighter" and draw.chance(0.5):
        for solid in both(fin.turn("y", draw.uniform(8, 20)).move(x=radius * 0.8)):
            yield "tail", solid
    else:
        yield "tail", fin
    span = length * draw.uniform(0.14, 0.2)
    top = tall + radius * 0.2 if kind == "liner" and draw.chance(0.25) else radius * 0.3
    plane = blade(root * 0.8, root * 0.45, span, 0.05 if kind == "propeller" else span * 0.45, 0.0, 0.025)
    for solid in both(plane.move(y=back - root * 0.45, z=top)):
        yield "tail", solid


def _engines(draw: Draw, kind: str, hull: tuple[float, ...], wing: tuple[float, ...]) -> Pieces:
    """Turbines below the wings or beside the tail, a propeller in front, or nozzles behind."""
    front, back, radius = hull
    span, sweep, rise, at, high = wing
    length = back - front
    if kind == "propeller":
        hub, reach = radius * 0.45, radius * draw.uniform(1.8, 2.5)
        yield (
            "engine",
            revolve([(hub, 0.0), (hub, 0.05), (hub * 0.7, 0.1), (0.0, 0.13)], 10).turn("x", 90).move(y=front + 0.02),
        )
        count, spin = draw.integer(2, 4), draw.uniform(0, 180)
        for i in range(count):
            paddle = box(0.07, 0.02, reach, taper=(0.7, 1.0)).turn("y", 360 * i / count + spin)
            yield "engine", paddle.move(y=front - 0.02)
        return
    if kind == "fighter":
        count = draw.integer(1, 2)
        for i in range(count):
            nozzle = cylinder(radius * (0.8 if count == 1 else 0.55), -0.12, 0.1, top=radius * 0.45, segments=12)
            x = (i - 0.5) * 1.2 * radius if count == 2 else 0.0
            yield "engine", nozzle.turn("x", -90).move(x, back)
        return
    width, long = radius * draw.uniform(0.42, 0.62), length * draw.uniform(0.1, 0.15)
    pod = [(width * 0.85, 0.0), (width, long * 0.25), (width, long * 0.6), (width * 0.6, long)]
    turbine = revolve(pod, 12).turn("x", -90)
    if draw.chance(0.25):
        for solid in both(turbine.move(radius + width * 1.1, back - length * 0.27, radius * 0.4)):
            yield "engine", solid
        return
    for share in (0.33, 0.62) if draw.chance(0.4) else (0.36,):
        y = at + sweep * share - long * 1.1
        for solid in both(turbine.move(span * share, y, high + rise * share - width * 1.05)):
            yield "engine", solid


CARS = {  # height of the deck; the cabin's front and rear end as shares of the length; its height
    "saloon": (0.6, 0.27, 0.82, 0.5),
    "hatch": (0.65, 0.25, 0.97, 0.55),
    "van": (0.8, 0.1, 0.98, 0.75),
    "pickup": (0.7, 0.24, 0.55, 0.55),
    "sports": (0.48, 0.36, 0.8, 0.4),
    "old": (0.62, 0.32, 0.85, 0.58),
}


def car(draw: Draw) -> Pieces:
    """Saloons, hatchbacks, vans, pick-ups and sports cars: body, cabin, wheels with hubs, lights."""
    kind = draw.choice(*CARS)
    length, width = draw.uniform(3.6, 4.6), draw.uniform(1.6, 1.85)
    wheel = draw.uniform(0.29, 0.36) * (0.95 if kind == "sports" else 1.05)
    low = wheel * draw.uniform(0.6, 0.85)
    deck = low + CARS[kind][0]
    hood = deck - draw.uniform(0.02, 0.16)
    a, b = -length / 2, length / 2
    outline = [
        (a, low + 0.05), (a + 0.02, hood - 0.18), (a + 0.12, hood - 0.05), (a + length * 0.27, deck - 0.01),
        (b - 0.15, deck), (b, deck - 0.12), (b, low + 0.05), (b - 0.2, low), (a + 0.2, low),
    ]  # fmt: skip
    yield "body", _across(outline, width, draw.uniform(0.9, 1.0))
    yield from _cabin(draw, kind, length, width, deck)
    if kind == "sports" and draw.chance(0.5):
        yield "body", box(width * 0.9, 0.3, 0.05).move(y=b - 0.2, z=deck + 0.2)
        for solid in both(box(0.07, 0.15, 0.25).move(width * 0.3, b - 0.2, deck - 0.02)):
            yield "body", solid

    rim = draw.uniform(0.45, 0.6)
    section = [(wheel * 0.55, 0.0), (wheel, 0.03), (wheel, 0.2), (wheel * 0.62, 0.24), (wheel * 0.55, 0.2)]
    for y in (a + length * draw.uniform(0.17, 0.2), b - length * draw.uniform(0.17, 0.21)):
        for tyre in both(revolve(section, 16).turn("y", 90).move(width / 2 - 0.15, y, wheel)):
            yield "wheel", tyre
        disc = cylinder(wheel * rim, 0.15, 0.235, top=wheel * 0.35, segments=10)
        for hub in both(disc.turn("y", 90).move(width / 2 - 0.15, y, wheel)):
            yield "hub", hub
    for solid in both(ball(0.16, 0.09, draw.uniform(0.08, 0.13), 8, 5).move(width * 0.33, a + 0.03, hood - 0.2)):
        yield "light", solid
    for solid in both(box(0.28, 0.06, 0.16).move(width * 0.34, b, deck - 0.36)):
        yield "light", solid


def _cabin(draw: Draw, kind: str, length: float, width: float, deck: float) -> Pieces:
    """Windows and roof, or an open car's windscreen and seats; the walls of a pick-up's bed."""
    front, rear, rise = CARS[kind][1:]
    rise *= draw.uniform(0.9, 1.1)
    slope = length * draw.uniform(0.09, 0.14) * (0.6 if kind in ("van", "old") else 1.0)
    end = length * (0.03 if kind in ("van", "pickup", "hatch") else draw.uniform(0.08, 0.14))
    y0, y1 = (front - 0.5) * length, (rear - 0.5) * length
    inset = width * 0.94
    if kind == "sports" and draw.chance(0.4):
        pane = box(inset * 0.9, 0.07, rise * 0.8, taper=(0.88, 1), lean=(0.0, 0.25))
        yield "cabin", pane.move(y=y0 + 0.1, z=deck - 0.03)
        for side in (-0.22, 0.22):
            yield "cabin", box(0.5, 0.2, 0.4, taper=(0.9, 0.7)).move(side * width, y0 + 0.95, deck - 0.08)
        return
    glass = [(y0, deck - 0.03), (y0 + slope, deck + rise), (y1 - end, deck + rise), (y1, deck - 0.03)]
    yield "cabin", _across(glass, inset, 0.82)
    roof = [
        (y0 + slope * 0.97, deck + rise - 0.02), (y0 + slope * 1.2, deck + rise + 0.06),
        (y1 - end * 1.2, deck + rise + 0.06), (y1 - end * 0.97, deck + rise - 0.02),
    ]  # fmt: skip
    yield "body", _across(roof, inset * 0.85, 0.92)
    if kind == "pickup":
        wall = box(0.1, length / 2 - y1, 0.22)
        for solid in both(wall.move(width / 2 - 0.08, (length / 2 + y1) / 2, deck - 0.02)):
            yield "body", solid


def _across(outline: list[tuple[float, float]], width: float, top: float) -> Solid:
    """A side view (y, z) made as wide as width, narrower by the factor top at its upper corners."""
    rings = torch.zeros(2, len(outline), 3, dtype=torch.float64)
    rings[:, :, 1:] = torch.tensor(outline, dtype=torch.float64)
    low, high = rings[0, :, 2].min(), rings[0, :, 2].max()
    half = width / 2 * (1 - (1 - top) * (rings[0, :, 2] - low) / (high - low))
    rings[0, :, 0], rings[1, :, 0] = -half, half
    return loft(rings, bands=(-1,))


def rocket(draw: Draw) -> Pieces:
    """Toy and space rockets: body, nose, fins, mostly an engine and a window, some with boosters."""
    radius, height = draw.uniform(0.15, 0.24), draw.uniform(0.9, 1.5)
    style = draw.choice("straight", "belly", "stages")
    neck = radius
    if style == "straight":
        body: list[tuple[float, ...]] = [(radius, 0.0), (radius, height)]
    elif style == "belly":
        neck = radius * draw.uniform(0.65, 0.85)
        wide = radius * draw.uniform(1.25, 1.6)
        body = curve([(radius * 0.8, 0.0), (wide, height * 0.42), (neck, height)], 6)
    else:
        neck = radius * draw.uniform(0.6, 0.85)
        half = height * draw.uniform(0.45, 0.6)
        body = [(radius, 0.0), (radius, half), (neck, half + 0.1), (neck, height)]
    yield "body", revolve(body, 18)
    tip = draw.uniform(0.3, 0.55)
    if draw.chance(0.4):
        nose: list[tuple[float, ...]] = [(neck * 1.01, height), (0.0, height + tip)]
    else:
        nose = [(neck * 1.01, height), (neck * 0.85, height + tip * 0.35), (neck * 0.5, height + tip * 0.75),
                (0.0, height + tip)]  # fmt: skip
    yield "nose", revolve(nose, 18)

    count, tall = draw.choice(3, 4, 4), height * draw.uniform(0.25, 0.42)
    span, drop = draw.uniform(0.18, 0.34), draw.uniform(-0.05, 0.28)
    base = radius * 0.7
    form = draw.choice("sharp", "swept", "curved")
    if form == "sharp":
        fin: list[tuple[float, ...]] = [(base, 0.0), (base + span + 0.1, -drop), (base, tall)]
    elif form == "swept":
        fin = [(base, 0.02), (base + span + 0.06, -drop), (base + span + 0.06, tall * 0.3), (base, tall)]
    else:
        edge = [(base + span * 0.6, -drop * 0.2), (base + span, -drop), (base + span + 0.04, tall * 0.3)]
        fin = curve([(base, 0.04), *edge, (base + 0.02, tall)], 2)
    spin = draw.uniform(0, 90)
    for i in range(count):
        plate = extrude(fin, 0.045).turn("x", 90).move(y=0.022)
        yield "fin", plate.turn("z", 360 * i / count + spin)
    if draw.chance(0.85):
        flare = radius * draw.uniform(0.55, 0.85)
        yield "engine", revolve([(flare, -0.16), (flare * 0.6, 0.02)], 14)
    if draw.chance(0.3):
        for side in (0, 180):
            pod = radius * draw.uniform(0.4, 0.55)
            shell = revolve([(pod * 0.8, -0.06), (pod, 0.02), (pod, height * 0.5), (0.0, height * 0.5 + 0.2)], 12)
            yield "booster", shell.move(x=radius + pod * 0.9).turn("z", side + spin + 180 / count)
    if draw.chance(0.7):
        level = height * draw.uniform(0.6, 0.75)
        out = radius_at(body, level)
        pane = out * draw.uniform(0.4, 0.6)
        ring = [(x, 0.0, z) for x, z in arc((0, 0), (pane, pane), 0, 330, 11)]
        for turn in (0, 180) if draw.chance(0.5) else (0,):
            port = ball(pane, 0.05, pane, 12, 4).move(y=-out + 0.01, z=level)
            yield "window", port.turn("z", turn)
            yield "window", tube(ring, 0.022, segments=6, loop=True).move(y=-out, z=level).turn("z", turn)
