"""Things to sit on, lie on and put things on. Each function draws one sample: pairs of part name and solid.

z is up and the front looks towards -y. Lengths are roughly metres.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared_attn.shapes.draw import Draw
from shared_attn.shapes.primitives import Solid, arc, ball, box, cushion, cylinder, extrude, revolve, rod, tube

Pieces = Iterator[tuple[str, Solid]]


def four_legs(
    draw: Draw, x: float, y: float, height: float, radius: float, splay: float = 0.0, turned: bool = False
) -> Iterator[Solid]:
    """Four legs of one style under the corners (+-x, +-y): round, square or turned on a lathe, straight or splayed."""
    segments = draw.choice(4, 4, 8)
    foot = radius * draw.choice(1.0, draw.uniform(0.45, 0.8))
    bulge = [1.0, draw.uniform(0.5, 0.7), draw.uniform(1.1, 1.5), draw.uniform(0.6, 0.8), draw.uniform(0.8, 1.2), 0.6]
    for sx in (-1, 1):
        for sy in (-1, 1):
            if turned:
                profile = [(radius * b, height * (1 - i / 5)) for i, b in enumerate(bulge)]
                yield revolve(profile, 8).move(sx * x, sy * y)
            else:
                top, bottom = (sx * x, sy * y, height), (sx * (x + splay), sy * (y + splay), 0.0)
                yield rod(top, bottom, radius, foot, segments=segments)


def star_foot(draw: Draw, reach: float, height: float, pole: float) -> Iterator[Solid]:
    """A central column on a disc, a bell or a star of arms; as high as `height`."""
    style = draw.choice("disc", "bell", "star")
    yield cylinder(pole, 0.02, height, segments=10)
    if style == "disc":
        yield cylinder(reach, 0.0, 0.03 * draw.uniform(0.7, 2), top=reach * draw.uniform(0.85, 1), segments=18)
    elif style == "bell":
        slope = [(reach, 0.0), (reach, 0.03), (0.45 * reach, 0.08), (1.1 * pole, 0.3 * height)]
        yield revolve(slope, 18)
    else:
        count, rise = draw.integer(3, 5), draw.uniform(0.03, 0.15)
        for i in range(count):
            arm = rod((0.0, 0.0, rise + 0.03), (0.0, -reach, 0.025), 0.025, 0.018, segments=4)
            yield arm.turn("z", 360 * i / count + 17)


def chair(draw: Draw) -> Pieces:
    """Dining, kitchen, office and arm chairs: seat, back, legs and sometimes arms."""
    width, depth = draw.uniform(0.4, 0.58), draw.uniform(0.4, 0.54)
    height, thick = draw.uniform(0.36, 0.52), draw.uniform(0.03, 0.09)
    seat_style = draw.choice("board", "cushion", "round", "board")
    if seat_style == "board":
        yield "seat", box(width, depth, thick, taper=(1.0, draw.uniform(0.92, 1.0))).move(z=height)
    elif seat_style == "cushion":
        yield "seat", cushion(width, depth, thick + 0.04, 0.05).move(z=height)
    else:
        yield "seat", extrude(arc((0, 0), (width / 2, depth / 2), 10, 350, 17), thick, bevel=0.15).move(z=height)

    shrink = 0.75 if seat_style == "round" else 1.0
    for solid in _chair_base(draw, width, depth, height, shrink):
        yield "leg", solid

    rise, lean = draw.uniform(0.32, 0.6), draw.uniform(2, 14)
    floor = height + thick
    for solid in _chair_back(draw, width, rise):
        yield "back", solid.turn("x", -lean).move(y=depth / 2 - 0.03, z=floor - 0.02)
    if draw.chance(0.4):
        level, bar = draw.uniform(0.16, 0.25), draw.uniform(0.013, 0.022)
        for side in (-1, 1):
            x = side * (width / 2 + bar - 0.005)
            front = -depth / 2 * draw.uniform(0.5, 0.9)
            yield "arm", rod((x, front, floor - 0.03), (x, front, floor + level), bar, segments=6)
            rest = box(2.6 * bar, depth / 2 - front + 0.02, 2 * bar)
            yield "arm", rest.move(x, (depth / 2 + front) / 2, floor + level)


def _chair_base(draw: Draw, width: float, depth: float, height: float, shrink: float) -> Iterator[Solid]:
    """What carries a chair's seat: four legs, a column or two runners; legs stand closer together by `shrink`."""
    base = draw.choice("legs", "legs", "legs", "column", "sled")
    if base == "legs":
        radius, splay = draw.uniform(0.016, 0.034), draw.choice(0.0, draw.uniform(0.02, 0.1))
        x, y = width / 2 - radius - 0.02, depth / 2 - radius - 0.02
        x, y = shrink * x, shrink * y
        yield from four_legs(draw, x, y, height + 0.01, radius, splay, turned=draw.chance(0.2))
        if draw.chance(0.35):
            level, at = height * draw.uniform(0.25, 0.5), splay * 0.65
            for side in (-1, 1):
                yield rod((side * (x + at), -y - at, level), (side * (x + at), y + at, level), 0.012)
    elif base == "column":
        yield from star_foot(draw, 0.5 * width, height, draw.uniform(0.02, 0.04))
    else:
        for side in (-1, 1):
            x, y = side * (width / 2 - 0.03), depth / 2 - 0.03
            path = [(x, y, height), (x, y, 0.02), (x, -y, 0.02), (x, -y, height)]
            yield tube(path, 0.016, across=(1, 0, 0), segments=6)


def _chair_back(draw: Draw, width: float, rise: float) -> Iterator[Solid]:
    """The back of a chair, upright on the plane z = 0, centred on the plane y = 0."""
    style = draw.choice("panel", "cushion", "slats", "rungs", "round", "low")
    post = draw.uniform(0.014, 0.022)
    if style == "panel":
        yield box(width * 0.97, draw.uniform(0.025, 0.05), rise, taper=(draw.uniform(0.7, 1.05), 1.0))
    elif style == "cushion":
        yield cushion(width * 0.95, draw.uniform(0.06, 0.1), rise, 0.045)
    elif style == "round":
        outline = arc((0, 0), (width / 2, rise / 2), 5, 355, 19)
        yield extrude(outline, 0.045, bevel=0.2).turn("x", 90).move(y=0.02, z=rise / 2)
    elif style == "low":
        for side in (-1, 1):
            yield rod((side * 0.36 * width, 0, 0), (side * 0.36 * width, 0, rise * 0.8), post)
        yield cushion(width * 0.95, 0.06, rise * draw.uniform(0.35, 0.6), 0.028).move(z=rise * 0.45)
    else:
        for side in (-1, 1):
            yield rod((side * (width / 2 - post), 0, 0), (side * (width / 2 - post), 0, rise), post, segments=6)
        count = draw.integer(3, 5)
        if style == "rungs":
            bar = draw.uniform(0.3, 0.6) * rise / count
            for i in range(count):
                yield box(width - 2 * post, 0.02, bar).move(z=rise * (i + 1) / count - bar)
        else:
            yield box(width, 0.035, rise * draw.uniform(0.12, 0.25)).move(z=rise * 0.85)
            for i in range(count):
                x = (width - 4 * post) * ((i + 0.5) / count - 0.5)
                yield rod((x, 0, 0), (x, 0, rise * 0.9), draw.uniform(0.008, 0.012), segments=6)


def table(draw: Draw) -> Pieces:
    """Dining, coffee and side tables, round or square, on legs, a column, trestles or crosses; some with a shelf."""
    low = draw.chance(0.35)
    height = draw.uniform(0.35, 0.5) if low else draw.uniform(0.68, 0.8)
    x, y = draw.uniform(0.7, 1.5), draw.uniform(0.6, 0.9)
    thick = draw.uniform(0.025, 0.07)
    style = draw.choice("square", "square", "round", "oval", "soft")
    if style == "square":
        yield "top", box(x, y, thick).move(z=height)
    elif style == "soft":
        yield "top", cushion(x, y, thick + 0.03, 0.03).move(z=height)
    else:
        y = y if style == "oval" else x
        yield "top", extrude(arc((0, 0), (x / 2, y / 2), 0, 345, 23), thick, bevel=0.12).move(z=height)
    straight = style in ("square", "soft")
    corner = (x / 2 - 0.07, y / 2 - 0.07) if straight else (0.31 * x, 0.31 * y)
    base = draw.choice("legs", "legs", "legs", "column", "trestle" if straight else "column", "cross")
    if base == "legs":
        radius, splay = draw.uniform(0.02, 0.045), draw.choice(0.0, draw.uniform(0.03, 0.1))
        for leg in four_legs(draw, *corner, height + 0.01, radius, splay, turned=draw.chance(0.25)):
            yield "leg", leg
        if splay == 0.0 and draw.chance(0.45):
            shelf = height * draw.uniform(0.2, 0.45)
            yield "shelf", box(2 * corner[0], 2 * corner[1], 0.025).move(z=shelf)
    elif base == "column":
        for solid in star_foot(draw, 0.36 * min(x, y) + 0.05, height + 0.01, draw.uniform(0.03, 0.07)):
            yield "leg", solid
    else:
        for solid in _table_sides(draw, base, *corner, height):
            yield "leg", solid
        if base == "trestle" and draw.chance(0.4):
            yield "shelf", box(2 * corner[0], 1.5 * corner[1], 0.025).move(z=height * 0.3)
    if base in ("legs", "trestle") and style == "square" and draw.chance(0.4):
        apron = draw.uniform(0.06, 0.12)
        yield "top", box(2 * corner[0], 2 * corner[1], apron).move(z=height - apron)


def _table_sides(draw: Draw, style: str, x: float, y: float, height: float) -> Iterator[Solid]:
    """Two boards (trestle) or two crosses at +-x, as deep as 2 y, with a bar between them."""
    for side in (-1, 1):
        if style == "trestle":
            yield box(draw.uniform(0.03, 0.06), 1.8 * y, height + 0.01).move(side * x)
        else:
            for way in (-1, 1):
                yield rod((side * x, -way * y, 0.02), (side * x, way * y, height), 0.026, segments=4)
    yield rod((-x, 0, height / 2), (x, 0, height / 2), 0.022, segments=6)


def bed(draw: Draw) -> Pieces:
    """Single and double beds: frame, headboard, mattress, pillows and mostly a blanket."""
    double = draw.chance(0.5)
    width = draw.uniform(1.35, 1.8) if double else draw.uniform(0.85, 1.1)
    length, level, thick = draw.uniform(1.9, 2.1), draw.uniform(0.16, 0.34), draw.uniform(0.14, 0.26)
    rail = draw.uniform(0.1, 0.2)
    yield "frame", box(width + 0.06, length + 0.06, rail).move(z=level - rail + 0.04)
    if draw.chance(0.75):
        for leg in four_legs(draw, width / 2 - 0.03, length / 2 - 0.03, level, 0.04):
            yield "frame", leg
    else:
        yield "frame", box(width * 0.9, length * 0.9, level)
    yield "mattress", cushion(width, length, thick, 0.07).move(z=level + 0.03)
    top = level + 0.03 + thick

    rise = top + draw.uniform(0.2, 0.65)
    for solid in _headboard(draw, width, rise):
        yield "headboard", solid.move(y=length / 2 + 0.06)
    if draw.chance(0.4):
        low = draw.uniform(0.3, 0.75) * rise
        yield "frame", box(width + 0.06, 0.05, low, taper=(draw.uniform(0.85, 1), 1)).move(y=-length / 2 - 0.05)

    pillow = (0.42 if double else draw.uniform(0.5, 0.75)) * width
    for side in (-0.5, 0.5) if double else (0.0,):
        soft = cushion(pillow, draw.uniform(0.34, 0.46), draw.uniform(0.1, 0.16), 0.065)
        yield "pillow", soft.turn("x", draw.uniform(0, 12)).move(side * width * 0.47, length / 2 - 0.3, top - 0.02)
    if draw.chance(0.8):
        cover, hang = draw.uniform(0.45, 0.72) * length, draw.uniform(0.06, 0.16)
        blanket = cushion(width + 0.07, cover, thick * 0.5 + hang, 0.06)
        yield "blanket", blanket.move(y=-length / 2 + cover / 2 - 0.03, z=top + 0.035 - thick * 0.5 - hang)


def _headboard(draw: Draw, width: float, rise: float) -> Iterator[Solid]:
    """A headboard of a bed, upright on the plane z = 0."""
    style = draw.choice("board", "arch", "padded", "bars")
    if style == "board":
        yield box(width + 0.08, 0.06, rise, taper=(draw.uniform(0.8, 1.0), 1.0))
    elif style == "arch":
        crown = draw.uniform(0.15, 0.35)
        outline = [(width / 2, 0.0), *arc((0, rise - crown), (width / 2, crown), 0, 180, 12), (-width / 2, 0.0)]
        yield extrude(outline, 0.06).turn("x", 90).move(y=0.03)
    elif style == "padded":
        yield cushion(width + 0.1, 0.13, rise, 0.06)
    else:
        for side in (-1, 1):
            x = side * width / 2
            yield cylinder(0.03, 0, rise, segments=8).move(x)
            yield ball(0.05, 0.05, 0.05, 8, 4).move(x, z=rise + 0.02)
        yield rod((-width / 2, 0, rise * 0.95), (width / 2, 0, rise * 0.95), 0.022)
        count = draw.integer(4, 7)
        for i in range(count):
            x = width * ((i + 0.5) / count - 0.5)
            yield rod((x, 0, rise * 0.3), (x, 0, rise * 0.95), 0.014, segments=6)


def sofa(draw: Draw) -> Pieces:
    """Sofas of one to four places: seat, back, arms, feet and sometimes loose cushions or a long end."""
    places = draw.integer(1, 4)
    width = places * draw.uniform(0.55, 0.68) + 0.1
    depth, level, thick = draw.uniform(0.75, 0.95), draw.uniform(0.12, 0.22), draw.uniform(0.14, 0.2)
    round_edge = draw.uniform(0.03, 0.08)
    yield "seat", box(width, depth, 0.15).move(z=level)
    top = level + 0.13
    wide = width / places
    long_end = draw.choice(-1, 1) if places > 2 and draw.chance(0.35) else 0
    for i in range(places):
        x = (i + 0.5) * wide - width / 2
        extra = 0.55 if (long_end == 1 and i == places - 1) or (long_end == -1 and i == 0) else 0.0
        yield (
            "seat",
            cushion(wide * 0.98, depth * 0.82 + extra, thick, round_edge).move(x, -depth * 0.1 - extra / 2, top),
        )
        if extra:
            yield "seat", box(wide, extra + 0.1, 0.15).move(x, -depth / 2 - extra / 2 + 0.05, level)
    rise, lean = draw.uniform(0.35, 0.6), draw.uniform(4, 14)
    split = draw.chance(0.6)
    for i in range(places if split else 1):
        x = (i + 0.5) * wide - width / 2 if split else 0.0
        back = cushion((wide if split else width) * 0.98, draw.uniform(0.16, 0.22), rise, round_edge + 0.02)
        yield "back", back.turn("x", -lean).move(x, depth / 2 - 0.2, top + thick * 0.6)
    yield "back", box(width, 0.1, 0.5 * rise + thick + 0.13).move(y=depth / 2 + 0.02, z=level)

    arm = draw.choice("block", "round", "roll", "none") if places > 1 else draw.choice("block", "round", "roll")
    thickness, high = draw.uniform(0.1, 0.2), thick + draw.uniform(0.2, 0.34)
    for side in (-1, 1) if arm != "none" else ():
        x = side * (width / 2 + thickness / 2)
        if arm == "block":
            yield "arm", box(thickness, depth + 0.1, high, taper=(1.0, draw.uniform(0.85, 1.0))).move(x, z=level)
        elif arm == "round":
            yield "arm", cushion(thickness, depth + 0.1, high, 0.45 * thickness).move(x, z=level)
        else:
            yield "arm", box(thickness * 0.7, depth + 0.06, high).move(x, z=level)
            roll = cylinder(thickness * 0.62, 0, depth + 0.1, segments=12).turn("x", 90)
            yield "arm", roll.move(x, depth / 2 + 0.05, level + high)
    foot = draw.uniform(0.02, 0.04)
    for leg in four_legs(draw, width / 2 - 0.06, depth / 2 - 0.06, level + 0.01, foot, turned=draw.chance(0.3)):
        yield "foot", leg
    for _ in range(draw.integer(0, min(2, places))):
        loose = cushion(0.4, 0.13, 0.38, 0.06).turn("x", -18).turn("z", draw.uniform(-15, 15))
        yield "cushion", loose.move(draw.uniform(-0.36, 0.36) * width, depth / 2 - 0.33, top + thick - 0.02)


def bookshelf(draw: Draw) -> Pieces:
    """Shelves with two sides, boards and rows of books."""
    width, depth = draw.uniform(0.6, 1.1), draw.uniform(0.24, 0.34)
    rows = draw.integer(2, 5)
    gap, board = draw.uniform(0.28, 0.36), draw.uniform(0.02, 0.035)
    height = rows * gap + board
    foot = draw.choice(0.0, draw.uniform(0.03, 0.12))
    style = draw.choice("case", "case", "open", "ladder")
    if style == "ladder":
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * (width / 2 - 0.01), sy * (depth / 2 - 0.015)
                yield "frame", rod((x, y, 0), (x, y, height + foot + 0.12), 0.017, segments=4)
    else:
        for side in (-1, 1):
            yield "frame", box(0.03, depth, height + foot).move(side * width / 2)
    if style == "case":
        yield "frame", box(width, 0.015, height).move(y=depth / 2 - 0.012, z=foot)
    for row in range(rows + 1):
        kind = "frame" if style == "case" and row in (0, rows) else "shelf"
        yield kind, box(width, depth * 0.98, board).move(z=foot + row * gap)
    for row in range(rows):
        floor = foot + row * gap + board
        space = gap - board
        x, stop = -width / 2 + 0.03, width / 2 - 0.05
        stop -= draw.choice(0.0, 0.0, draw.uniform(0.1, 0.6) * width)
        while x < stop:
            thick = min(draw.uniform(0.05, 0.14), width / 2 - 0.02 - x)
            book = box(thick * 0.94, depth * draw.uniform(0.65, 0.85), space * draw.uniform(0.6, 0.92))
            yield "book", book.move(x + thick / 2, -0.03, floor)
            x += thick
