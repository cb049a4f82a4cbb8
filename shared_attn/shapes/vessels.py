"""Lamps and things to drink and pour from: mostly surfaces of revolution. Each function draws one sample."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shared_attn.shapes.draw import Draw
from shared_attn.shapes.primitives import Solid, arc, ball, box, curve, cylinder, radius_at, revolve, rod, tube

Pieces = Iterator[tuple[str, Solid]]
Profile = list[tuple[float, ...]]


def wall(profile: Profile, thick: float) -> Profile:
    """Profile of an open vessel: up the outside, over the rim, down the inside to the floor's middle."""
    floor = profile[0][1] + thick
    inside = [(max(r - thick, 0.1 * r), z) for r, z in reversed(profile) if z > floor]
    bottom = max(profile[0][0] - thick, 0.1 * profile[0][0])
    return [*profile, *inside, (bottom, floor), (0.0, floor)]


def lamp(draw: Draw) -> Pieces:
    """Floor, table and desk lamps: a base, a pole (straight, a vase or jointed arms) and a shade."""
    kind = draw.choice("floor", "table", "table", "desk")
    reach = draw.uniform(0.11, 0.2)
    if kind == "floor":
        height = draw.uniform(0.95, 1.4)
    elif kind == "table":
        height = draw.uniform(0.32, 0.55)
    else:
        height = draw.uniform(0.4, 0.6)
    yield from _lamp_base(draw, reach, height)
    x = 0.0
    tilt = 0.0
    if kind == "desk":
        elbow = (draw.uniform(0.08, 0.2), 0.0, height * draw.uniform(0.5, 0.65))
        x = -draw.uniform(0.1, 0.25)
        tilt = draw.uniform(10, 50)
        pole = draw.uniform(0.012, 0.02)
        yield "pole", rod((0, 0, 0.02), elbow, pole)
        yield "pole", rod(elbow, (x, 0, height), pole)
        yield "pole", ball(1.7 * pole, 1.7 * pole, 1.7 * pole, 8, 4).move(*elbow)
    elif kind == "table" and draw.chance(0.7):
        belly, neck = draw.uniform(0.06, 0.13), draw.uniform(0.015, 0.03)
        middle = draw.uniform(0.25, 0.7)
        controls = [(neck * 1.5, 0.02), (belly, 0.02 + middle * (height - 0.1)), (neck * 1.4, height - 0.08)]
        yield "pole", revolve([*curve(controls, 4), (neck, height)], 14)
    else:
        yield "pole", cylinder(draw.uniform(0.012, 0.022), 0.01, height, segments=8)
    for part, solid in _lamp_shade(draw, kind):
        yield part, solid.turn("y", tilt).move(x, 0, height)


def _lamp_base(draw: Draw, reach: float, height: float) -> Pieces:
    """What a lamp stands on: disc, dome, block or tripod."""
    style = draw.choice("disc", "dome", "block", "tripod" if height > 0.9 else "disc")
    if style == "disc":
        yield "base", cylinder(reach, 0, draw.uniform(0.02, 0.05), top=reach * draw.uniform(0.8, 1), segments=16)
    elif style == "dome":
        high = draw.uniform(0.05, 0.1)
        yield "base", revolve([(reach, 0.0), *arc((0, 0), (reach, high), 10, 80, 3), (0.0, high)], 16)
    elif style == "block":
        yield "base", box(1.7 * reach, 1.7 * reach, draw.uniform(0.03, 0.08), taper=(0.9, 0.9))
    else:
        top = height * draw.uniform(0.3, 0.6)
        for i in range(3):
            yield "base", rod((0, 0, top), (0, -1.5 * reach, 0), 0.014, segments=6).turn("z", 120 * i + 20)


def _lamp_shade(draw: Draw, kind: str) -> Pieces:
    """A lamp's shade around the z axis near z = 0, and sometimes the bulb beneath it."""
    style = draw.choice("cone", "cone", "drum", "bell", "globe") if kind != "desk" else draw.choice("cone", "bell")
    wide = draw.uniform(0.14, 0.25) if kind != "desk" else draw.uniform(0.09, 0.14)
    high = wide * draw.uniform(0.9, 1.5)
    if style == "globe":
        yield "shade", ball(wide * 0.8, wide * 0.8, wide * draw.uniform(0.7, 0.95), 16, 10).move(z=wide * 0.6)
        return
    side: Profile
    if style == "drum":
        side = [(wide, -high * 0.4), (wide, high * 0.6)]
    elif style == "cone":
        side = [(wide, -high * 0.5), (wide * draw.uniform(0.25, 0.65), high * 0.5)]
    else:
        side = curve([(wide, -high * 0.5), (wide * 0.62, -high * 0.1), (wide * 0.3, high * 0.5)], 3)
    thin = 0.05 * wide
    yield "shade", revolve([*side, *((r - thin, z) for r, z in reversed(side))], 18, loop=True)
    top = side[-1]
    yield "shade", cylinder(top[0] * 0.97, top[1] - 0.012, top[1] - 0.003, segments=18)
    yield "bulb", ball(0.3 * wide, 0.3 * wide, 0.36 * wide, 8, 5).move(z=-high * draw.uniform(0.15, 0.3))


def mug(draw: Draw) -> Pieces:
    """Mugs and cups: a hollow body, an ear or ring as handle, sometimes a saucer."""
    radius, height = draw.uniform(0.36, 0.5), draw.uniform(0.7, 1.15)
    style = draw.choice("straight", "straight", "taper", "belly", "cup")
    foot = radius * draw.uniform(0.86, 1.0)
    if style == "straight":
        side: Profile = [(foot * 0.94, 0.0), (foot, 0.05), (radius, height)]
    elif style == "taper":
        side = [(radius * draw.uniform(0.6, 0.75), 0.0), (radius, height)]
    elif style == "belly":
        side = curve([(foot * 0.7, 0.0), (radius * 1.1, height * 0.45), (radius * 0.9, height)], 5)
    else:
        height *= 0.7
        side = curve([(radius * 0.5, 0.0), (radius * 0.95, height * 0.4), (radius * 1.2, height)], 5)
    thick = draw.uniform(0.045, 0.07)
    yield "body", revolve(wall(side, thick), 24)

    steep = style in ("straight", "taper")  # elsewhere the lower wall lies too flat for a handle's end
    low = height * (draw.uniform(0.15, 0.3) if steep else draw.uniform(0.32, 0.4))
    high = height * draw.uniform(0.74, 0.88)
    out, bar = draw.uniform(0.22, 0.36), draw.uniform(0.04, 0.06)
    a, b = (max(radius_at(side, z - bar), radius_at(side, z + bar)) - 0.9 * thick for z in (low, high))
    reach = max(a, b) + out
    form = draw.choice("ear", "ring", "square")
    if form == "ear":
        path = curve([(b, 0, high), (reach, 0, high * 0.98), (reach * 0.98, 0, (low + high) / 2), (a, 0, low)], 4)
    elif form == "ring":
        bow = arc((0, (low + high) / 2), (out * 1.1, (high - low) / 2), 90, -90, 10)
        path = [(r + b + (a - b) * i / 10, 0.0, z) for i, (r, z) in enumerate(bow)]
    else:
        path = [(b, 0, high), (reach, 0, high), (reach, 0, low), (a, 0, low)]
    turn = draw.uniform(-25, 25)
    yield "handle", tube(path, bar, aspect=draw.uniform(0.9, 1.6)).turn("z", turn)
    if draw.chance(0.3):
        wide = radius * draw.uniform(1.7, 2.0)
        rim = [(0.6 * wide, -0.06), (wide, 0.06), (wide, 0.1), (0.6 * wide, 0.0), (0.0, 0.0)]
        yield "saucer", revolve(rim, 24)


def bottle(draw: Draw) -> Pieces:
    """Bottles for wine, beer, water and syrup, round or square: body, neck, cap and mostly a label."""
    style = draw.choice("wine", "water", "slope", "flask", "square")
    radius, height = draw.uniform(0.14, 0.2), draw.uniform(0.4, 0.62)
    neck, rise = draw.uniform(0.045, 0.065), draw.uniform(0.14, 0.3)
    segments = 4 if style == "square" else 18
    shoulder = {"wine": 0.09, "water": 0.07, "slope": 0.28, "flask": 0.16, "square": 0.06}[style]
    shoulder *= draw.uniform(0.8, 1.2)
    if style == "flask":
        side = curve([(radius * 0.7, 0), (radius * 1.35, height * 0.35), (radius * 0.8, height * 0.75)], 4)
        height = side[-1][1]
        bend = curve([side[-1], (neck * 1.5, height + shoulder * 0.7), (neck, height + shoulder)], 3)
    else:
        side = [(radius * 0.9, 0.0), (radius, 0.02), (radius, height)]
        if style == "water" and draw.chance(0.6):
            waist = radius * draw.uniform(0.8, 0.92)
            side[2:2] = curve([(radius, height * 0.35), (waist, height * 0.5), (radius, height * 0.65)], 3)
        bend = [(radius, height), *arc((neck, height), (radius - neck, shoulder), 25, 65, 2), (neck, height + shoulder)]
        if style == "slope":
            bend = curve([(radius, height), (radius * 0.55 + neck * 0.45, height + shoulder * 0.55), bend[-1]], 3)
    body = [*side[:-1], *bend]
    spin = 45 if draw.chance(0.5) else 0
    yield "body", revolve(body, segments).turn("z", spin)
    low = height + shoulder
    yield "neck", revolve([(neck, low - 0.01), (neck, low + rise), (neck * 1.15, low + rise)], 12)
    yield "neck", cylinder(neck * 1.3, low + rise * 0.8, low + rise * 0.92, segments=12)
    top = low + rise
    if style == "wine" and draw.chance(0.5):
        yield "cap", cylinder(neck * 0.85, top - 0.01, top + 0.05, segments=10)
    else:
        yield "cap", cylinder(neck * draw.uniform(1.2, 1.5), top - 0.02, top + draw.uniform(0.03, 0.08), segments=12)
    if style != "flask" and draw.chance(0.7):
        band, at = height * draw.uniform(0.25, 0.5), height * draw.uniform(0.15, 0.4)
        bulge = radius * (1.03 if segments > 4 else 1.02)
        yield "label", cylinder(bulge, at, at + band, segments=segments).turn("z", spin)


def teapot(draw: Draw) -> Pieces:
    """Teapots and kettles: a round body, a lid with a knob, a bent or straight spout, a handle behind or above."""
    radius, height = draw.uniform(0.42, 0.55), draw.uniform(0.5, 0.85)
    mouth = radius * draw.uniform(0.4, 0.62)
    style = draw.choice("round", "round", "pear", "cone", "drum")
    middle = {"round": 0.5, "pear": 0.33, "cone": 0.12, "drum": 0.5}[style]
    side: Profile
    if style == "drum":
        side = [(radius * 0.85, 0.0), (radius * 0.92, height * 0.12), (radius * 0.92, height * 0.8), (mouth, height)]
    elif style == "cone":
        side = [(radius, 0.0), (radius * 1.02, height * 0.12), (mouth, height)]
    else:
        side = curve([(radius * 0.6, 0), (radius, height * middle), (mouth, height)], 6)
    yield "body", revolve(side, 22)
    dome = height + draw.uniform(0.06, 0.2)
    cover = arc((0, height), (mouth * 0.97, dome - height), 20, 70, 2)
    yield "lid", revolve([(mouth * 0.97, height - 0.01), *cover, (0.0, dome)], 18)
    knob = draw.uniform(0.05, 0.08)
    yield "lid", ball(knob, knob, knob * draw.uniform(0.7, 1.4), 10, 6).move(z=dome + knob * 0.6)

    start, tip = draw.uniform(0.2, 0.4) * height, height * draw.uniform(0.9, 1.15)
    reach = radius + draw.uniform(0.25, 0.4)
    thick, thin = draw.uniform(0.1, 0.14), draw.uniform(0.04, 0.06)
    if draw.chance(0.65):
        path = curve(
            [
                (-radius * 0.8, 0, start),
                (-reach * 0.86, 0, start + 0.1),
                (-reach * 0.95, 0, tip - 0.15),
                (-reach - 0.08, 0, tip),
            ],
            3,
        )
    else:
        path = [(-radius * 0.75, 0.0, start), (-reach - 0.05, 0.0, tip)]
    last = len(path) - 1
    yield "spout", tube(path, [thick + (thin - thick) * math.sqrt(i / last) for i in range(last + 1)], segments=10)

    bar = draw.uniform(0.03, 0.05)
    if draw.chance(0.7):
        out = radius + draw.uniform(0.22, 0.35)
        high, low = height * draw.uniform(0.75, 0.9), height * draw.uniform(0.15, 0.3)
        hold = radius * 0.75
        path = curve([(hold, 0, high), (out, 0, high * 1.02), (out, 0, (low + high) / 2), (hold, 0, low)], 4)
        yield "handle", tube(path, bar, aspect=draw.uniform(0.9, 1.5))
    else:
        hoop = radius * draw.uniform(0.75, 0.9)
        path = [(x, 0.0, z) for x, z in arc((0, height * 0.75), (hoop, height * draw.uniform(0.7, 1.0)), 0, 180, 12)]
        yield "handle", tube(path, bar, aspect=draw.uniform(0.9, 1.5))
