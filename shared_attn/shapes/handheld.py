"""Things to hold or wear. Each function draws one sample: pairs of part name and solid."""

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
    cushion,
    cylinder,
    extrude,
    loft,
    revolve,
    rod,
    tube,
)

Pieces = Iterator[tuple[str, Solid]]


def upright(outline: list[tuple[float, ...]], thick: float, bevel: float = 0.0) -> Solid:
    """An outline (x, z) given a thickness around the plane y = 0."""
    return extrude(outline, thick, bevel=bevel).turn("x", 90).move(y=thick / 2)


def guitar(draw: Draw) -> Pieces:
    """Acoustic and electric guitars, upright: body, neck, head and the bridge with sound hole or pickups."""
    acoustic = draw.chance(0.5)
    wide, upper, waist = draw.uniform(0.19, 0.23), draw.uniform(0.13, 0.17), draw.uniform(0.1, 0.125)
    height = draw.uniform(0.44, 0.54)
    thick = draw.uniform(0.09, 0.13) if acoustic else draw.uniform(0.04, 0.06)
    half = [(wide * 0.6, 0.01), (wide, height * 0.24), (waist, height * 0.6), (upper, height * 0.84),
            (upper * 0.5, height)]  # fmt: skip
    left = [(-x, z) for x, z in reversed(half)]
    style = "round" if acoustic else draw.choice("horns", "single", "vee", "round")
    if style == "horns":
        half[3:] = [(upper, height * 0.88), (upper * 0.8, height * 1.06), (0.045, height * 0.86)]
        lift = height * draw.uniform(1.08, 1.16)
        left = [(-0.045, height * 0.86), (-upper * 0.85, lift), (-upper, height * 0.88), *left[2:]]
    elif style == "single":
        half[3:] = [(upper * 0.95, height * 0.82), (upper * 0.8, height * 0.95), (0.04, height * 0.82)]
    if style == "vee":
        outline: list[tuple[float, ...]] = [
            (0.02, height * 0.3), (wide * 1.15, -0.08), (wide * 1.3, 0.02), (0.06, height * 0.95),
            (-0.06, height * 0.95), (-wide * 1.3, 0.02), (-wide * 1.15, -0.08), (-0.02, height * 0.3),
        ]  # fmt: skip
    else:
        outline = curve([(0.0, 0.0), *half, *left], 3, loop=True)
    yield "body", upright(outline, thick, bevel=0.04)

    face = -thick / 2
    length, bar = draw.uniform(0.36, 0.48), draw.uniform(0.024, 0.032)
    foot = height * 0.78
    top = height + length
    yield "neck", box(2.3 * bar, 0.035, top - foot, taper=(0.78, 1.0)).move(y=face - 0.006, z=foot)
    head = draw.uniform(0.13, 0.19)
    if draw.chance(0.5):
        yield "head", box(2.2 * bar, 0.025, head, taper=(draw.uniform(1.2, 1.6), 1)).move(y=face + 0.006, z=top)
    else:
        side = draw.choice(-1.0, 1.0)
        plate = box(2.0 * bar, 0.025, head, taper=(1.25, 1), lean=(side * bar, 0)).move(y=face + 0.006, z=top)
        yield "head", plate
    for i in range(3):
        z = top + head * (0.25 + 0.25 * i)
        yield "head", rod((-0.068, face, z), (0.068, face, z), 0.009, segments=6)

    saddle = height * draw.uniform(0.2, 0.3)
    yield "bridge", box(draw.uniform(0.12, 0.2), 0.025, 0.035).move(y=face, z=saddle)
    if acoustic:
        hole = cylinder(draw.uniform(0.045, 0.06), 0, 0.012, segments=16).turn("x", 90)
        yield "bridge", hole.move(y=face, z=height * 0.64)
    else:
        for i in range(draw.integer(1, 3)):
            yield "bridge", box(0.1, 0.025, 0.03).move(y=face, z=saddle + 0.07 + 0.065 * i)


def hammer(draw: Draw) -> Pieces:
    """Claw, sledge and ball hammers and mallets, head up: handle, head and mostly a grip."""
    kind = draw.choice("claw", "claw", "sledge", "ball", "mallet")
    length = draw.uniform(0.75, 1.15)
    bar, flat = draw.uniform(0.035, 0.05), draw.uniform(0.7, 1.0)
    swell = draw.uniform(1.0, 1.3)
    profile = [(bar * swell, 0.0), (bar * swell, length * 0.2), (bar * 0.8, length * 0.55), (bar, length)]
    yield "handle", revolve(profile, 10).stretch(y=flat)
    if draw.chance(0.65):
        grip, thick = length * draw.uniform(0.28, 0.45), bar * swell * draw.uniform(1.15, 1.35)
        ends = [
            (thick * 0.8, -0.02),
            (thick, 0.01),
            (thick * 0.93, grip * 0.5),
            (thick, grip),
            (thick * 0.7, grip + 0.02),
        ]
        yield "grip", revolve(ends, 12).stretch(y=flat)

    size, reach = draw.uniform(0.075, 0.1), draw.uniform(0.19, 0.27)
    if kind == "mallet":
        size *= draw.uniform(1.4, 1.8)
        if draw.chance(0.5):
            yield (
                "head",
                revolve([(size, -reach), (size * 1.08, -reach * 0.6), (size * 1.08, reach * 0.6), (size, reach)], 16)
                .turn("y", 90)
                .move(z=length),
            )
        else:
            yield "head", box(2 * reach, 1.5 * size, 1.9 * size, taper=(1.12, 1)).move(z=length - size)
        return
    if kind == "sledge":
        edge = size * draw.uniform(1.0, 1.3)
        for side in (-1, 1):
            yield "head", rod((0, 0, length), (side * reach, 0, length), edge, 0.9 * edge, segments=draw.choice(4, 8))
        return
    yield "head", box(3.0 * bar, 2.6 * bar, 2.4 * size, taper=(0.9, 0.9)).move(z=length - 1.3 * size)
    face = [(size * 0.62, 0.0), (size * 0.62, reach * 0.55), (size, reach * 0.62), (size, reach * 0.95),
            (size * 0.9, reach)]  # fmt: skip
    yield "head", revolve(face, 14).turn("y", 90).move(z=length)
    if kind == "ball":
        yield "head", rod((0, 0, length), (-reach * 0.6, 0, length), size * 0.6)
        yield "head", ball(size * 0.85, size * 0.85, size * 0.85, 12, 7).move(-reach * 0.75, 0, length)
        return
    bend, long = draw.uniform(0.06, 0.16), reach * draw.uniform(1.05, 1.35)
    for side in (-1, 1):
        path = curve([(0, side * 0.02, length), (-long * 0.5, side * 0.03, length - bend * 0.1),
                      (-long, side * 0.06, length - bend)], 3)  # fmt: skip
        yield "head", tube(path, [size * (0.5 - 0.4 * i / 6) for i in range(7)], segments=8, aspect=0.6)


def hat(draw: Draw) -> Pieces:
    """Top hats, bowlers, straw hats and baseball caps: crown, brim and a band or button."""
    kind = draw.choice("top", "bowler", "straw", "cap", "cap", "witch")
    radius = draw.uniform(0.42, 0.5)
    oval = draw.uniform(1.05, 1.2)
    if kind == "cap":
        yield from _cap(draw, radius, oval)
        return
    height = {"top": draw.uniform(0.55, 0.85), "bowler": draw.uniform(0.5, 0.66), "straw": draw.uniform(0.28, 0.4),
              "witch": draw.uniform(0.9, 1.25)}[kind]  # fmt: skip
    wide = radius * {"top": 1.5, "bowler": 1.36, "straw": draw.uniform(1.7, 2.1), "witch": 1.9}[kind]
    if kind == "top":
        crown: list[tuple[float, ...]] = [(radius, 0.0), (radius * draw.uniform(0.85, 0.95), height * 0.5),
                                          (radius * draw.uniform(0.95, 1.12), height)]  # fmt: skip
    elif kind == "bowler":
        crown = [(radius, 0.0), (radius, height * 0.35), *arc((0, height * 0.35), (radius, height * 0.65), 20, 70, 3),
                 (0.0, height)]  # fmt: skip
    elif kind == "straw":
        crown = [(radius, 0.0), (radius * 0.92, height * 0.85), (radius * 0.8, height)]
    else:
        crown = [(radius, 0.0), (radius * 0.5, height * 0.4), (radius * 0.22, height * 0.75), (0.0, height)]
    yield "crown", revolve(crown, 20).stretch(y=oval)

    lift = {"top": 0.1, "bowler": 0.1, "straw": draw.uniform(-0.12, 0.06), "witch": draw.uniform(-0.05, 0.05)}[kind]
    inner, thin = radius * 0.9, 0.03
    brim = [(inner, 0.0), ((inner + wide) / 2, lift * 0.2), (wide, lift)]
    ring = [*brim, *((r, z + thin) for r, z in reversed(brim))]
    yield "brim", revolve(ring, 22, loop=True).stretch(y=oval)
    band = height * draw.uniform(0.14, 0.26)
    (r0, _), (r1, z1) = crown[0], crown[1]
    slope = [(r0 * 1.025, 0.02), (r0 * 1.025 + (r1 - r0) * (band / z1), 0.02 + band)]
    yield "band", revolve(slope, 20).stretch(y=oval)


def _cap(draw: Draw, radius: float, oval: float) -> Pieces:
    """Baseball cap: dome, peak to the front, a band around and a button on top."""
    height = radius * draw.uniform(0.8, 1.1)
    arch = arc((0, height * 0.3), (radius * 0.99, height * 0.7), 22, 68, 2)
    dome = [(radius, 0.0), (radius * 0.99, height * 0.3), *arch, (0.0, height)]
    yield "crown", revolve(dome, 20).stretch(y=oval)
    long, wide, drop = draw.uniform(0.3, 0.48), radius * draw.uniform(0.82, 0.95), draw.uniform(0.04, 0.14)
    steps = 8
    rings = torch.zeros(steps + 1, 4, 3, dtype=torch.float64)
    for i, (x, y) in enumerate(arc((0, 0), (1.0, 1.0), 180, 360, steps)):
        near = -oval * radius * 0.9 * (1 - 0.3 * x * x) + 0.12 * x * x
        far = near + (long + 0.1) * y - 0.03
        sag = 0.02 - drop * x * x
        inner, outer, tip = sag + 0.04, sag - 0.3 * drop + 0.03, sag - 0.3 * drop
        section = [(wide * x, near, inner), (wide * x, far, outer), (wide * x, far, tip), (wide * x, near, sag)]
        rings[i] = torch.tensor(section, dtype=torch.float64)
    yield "brim", loft(rings, sides=(0, 1, 2, 3))
    button = draw.uniform(0.03, 0.05)
    yield "band", ball(button, button, button * 0.7, 8, 4).move(z=height + 0.005)
    strip = [(radius * 1.015, 0.0), (radius * 1.015, draw.uniform(0.05, 0.12))]
    yield "band", revolve(strip, 20).stretch(y=oval)


def headphones(draw: Draw) -> Pieces:
    """Headphones, band up: band, cups, ear pads and sometimes a microphone."""
    half, height = draw.uniform(0.36, 0.46), draw.uniform(0.42, 0.58)
    flat = draw.uniform(1.6, 3.5)
    thin = draw.uniform(0.02, 0.035)
    shape = [(half, -0.12), *arc((0, 0.1), (half, height), 0, 180, 14), (-half, -0.12)]
    yield "band", tube([(x, 0.0, z) for x, z in shape], thin, segments=8, aspect=flat)
    if draw.chance(0.5):
        inner = arc((0, 0.1), (half - 0.04, height - 0.04), 30, 150, 8)
        yield "pad", tube([(x, 0.0, z) for x, z in inner], thin * 1.3, segments=8, aspect=flat)
    cup, deep = draw.uniform(0.17, 0.26), draw.uniform(0.07, 0.12)
    tall = draw.uniform(1.0, 1.25)
    edge = draw.uniform(0.6, 0.95)
    style = draw.choice("disc", "dome", "soft")
    for side in (-1, 1):
        if style == "soft":
            shell = cushion(1.7 * cup, 1.9 * cup, deep, 0.05)
        elif style == "disc":
            shell = revolve([(cup, 0.0), (cup, deep * 0.7), (cup * edge, deep), (cup * edge * 0.6, deep * 1.05)], 16)
        else:
            shell = revolve([(cup, 0.0), (cup * 0.92, deep * 0.6), (cup * 0.55, deep * 1.1), (0.0, deep * 1.25)], 16)
        yield "cup", shell.stretch(x=tall).turn("y", 90).stretch(x=side).move(side * half, 0, -0.14)
        pad = arc((cup * 0.68, -0.035), (cup * 0.36, 0.05), 0, 315, 7)
        ring = revolve(pad, 16, loop=True).stretch(x=tall)
        yield "pad", ring.turn("y", 90).stretch(x=side).move(side * half, 0, -0.14)
    if draw.chance(0.3):
        path = curve([(half + 0.03, 0, -0.22), (half, -0.3, -0.36), (half * 0.4, -0.5, -0.4)], 4)
        yield "microphone", tube(path, 0.016, segments=6, across=(0.0, 0.0, 1.0))
        yield "microphone", ball(0.05, 0.05, 0.05, 8, 5).move(half * 0.4, -0.5, -0.4)
