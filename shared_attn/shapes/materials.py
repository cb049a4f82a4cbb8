"""What a picture looks like besides the mesh: colours, camera, light and background, all drawn from a seed."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from shared_attn.shapes.catalogue import CATALOGUE, CLASS_NAMES, CLASS_PART_START
from shared_attn.shapes.draw import Draw

Colour = tuple[float, float, float]
Paint = tuple[float, float, float, float]  # colour and gloss
Range = tuple[float, float]


@dataclass(frozen=True)
class Material:
    """Ranges of saturation, value and hue (None: the picture's base hue, "accent": its second one); gloss 0..1."""

    saturation: Range
    value: Range
    hue: Range | str | None = None
    gloss: float = 0.0


MATERIALS = {
    "paint": Material((0.62, 0.95), (0.62, 0.98), gloss=0.3),
    "accent": Material((0.62, 0.95), (0.6, 0.98), "accent", gloss=0.2),
    "fabric": Material((0.35, 0.8), (0.42, 0.92)),
    "ceramic": Material((0.25, 0.8), (0.72, 0.98), gloss=0.45),
    "wood": Material((0.4, 0.72), (0.38, 0.85), (0.055, 0.105), gloss=0.08),
    "amber": Material((0.7, 0.92), (0.6, 0.92), (0.03, 0.11), gloss=0.35),
    "leather": Material((0.5, 0.75), (0.28, 0.62), (0.02, 0.08), gloss=0.2),
    "straw": Material((0.3, 0.5), (0.82, 0.95), (0.11, 0.14)),
    "cream": Material((0.08, 0.32), (0.92, 1.0), (0.09, 0.15)),
    "white": Material((0.0, 0.08), (0.88, 0.98), (0.05, 0.65), gloss=0.2),
    "metal": Material((0.02, 0.14), (0.55, 0.85), (0.55, 0.66), gloss=0.6),
    "dark": Material((0.05, 0.35), (0.13, 0.28), (0.0, 1.0), gloss=0.25),
    "rubber": Material((0.0, 0.12), (0.1, 0.2), (0.5, 0.7), gloss=0.1),
    "window": Material((0.3, 0.55), (0.22, 0.5), (0.54, 0.61), gloss=0.7),
    "glow": Material((0.15, 0.5), (0.98, 1.0), (0.11, 0.16), gloss=0.3),
    "books": Material((0.45, 0.85), (0.45, 0.92), (0.0, 1.0), gloss=0.05),
}
GLASS_HUES: tuple[Range, ...] = ((0.3, 0.42), (0.3, 0.42), (0.06, 0.11), (0.5, 0.62))
GLASS = ((0.5, 0.88), (0.32, 0.72), 0.7)  # saturation, value, gloss
# A picture's base hue is near one of these.
HUES = (0.0, 0.03, 0.07, 0.12, 0.15, 0.25, 0.38, 0.47, 0.53, 0.58, 0.63, 0.74, 0.9, 0.96)
BACKDROPS: tuple[tuple[Range, Range], ...] = (  # saturation, value
    ((0.06, 0.3), (0.86, 1.0)),
    ((0.06, 0.3), (0.86, 1.0)),
    ((0.2, 0.5), (0.78, 0.98)),
    ((0.2, 0.5), (0.78, 0.98)),
    ((0.35, 0.6), (0.55, 0.8)),
    ((0.3, 0.65), (0.22, 0.4)),
)


@dataclass(frozen=True)
class Look:
    """One picture. Angles in degrees (yaw 0: camera in front, at -y); colours red, green, blue in 0..1.

    paints has a colour and its gloss for each solid of the mesh; backdrop is the upper and the lower colour; fill is
    the share of the picture's size that the thing takes; shift its displacement in the same measure.
    """

    yaw: float
    elevation: float
    light_yaw: float
    light_elevation: float
    ambient: float
    paints: list[Paint]
    backdrop: tuple[Colour, Colour]
    shadow: float
    fill: float
    shift: tuple[float, float]


def _colour(draw: Draw, material: str, base: float, accent: float) -> Paint:
    """One colour of a material, and its gloss."""
    if material == "glass":
        saturation, value, gloss = GLASS
        hue = draw.uniform(*draw.choice(*GLASS_HUES))
    else:
        entry = MATERIALS[material]
        saturation, value, gloss = entry.saturation, entry.value, entry.gloss
        if isinstance(entry.hue, tuple):
            hue = draw.uniform(*entry.hue)
        else:
            hue = (accent if entry.hue == "accent" else base) + draw.uniform(-0.03, 0.03)
    return (*_rgb(hue, draw.uniform(*saturation), draw.uniform(*value)), gloss)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    """Colour of a hue (any number; whole turns are left out), with the harsh full greens and magentas toned down."""
    hue %= 1.0
    glare = max(0.0, 1 - abs(hue - 0.34) / 0.14, 1 - abs(hue - 0.85) / 0.1)
    return colorsys.hsv_to_rgb(hue, saturation * (1 - 0.32 * glare), min(value, 1.0) * (1 - 0.22 * glare * saturation))


def draw_look(draw: Draw, class_name: str, solid_parts: list[int]) -> Look:
    """Draws a picture's look for a mesh of a class whose solids belong to the given global part ids."""
    entry = CATALOGUE[class_name]
    base = draw.choice(*HUES) + draw.uniform(-0.03, 0.03)
    accent = base + draw.choice(0.5, 0.42, 0.58, 0.33, -0.33, 0.12, -0.12)
    chosen: dict[str, tuple[str, Paint]] = {}
    for part, materials in entry.parts.items():
        material = draw.choice(*materials)
        chosen[part] = chosen[material[1:]] if material[0] == "=" else (material, _colour(draw, material, base, accent))
    names, start = list(entry.parts), CLASS_PART_START[CLASS_NAMES.index(class_name)]
    paints = []
    for number in solid_parts:
        material, paint = chosen[names[number - start]]
        paints.append(_colour(draw, material, base, accent) if material == "books" else paint)

    behind = base + draw.choice(0.5, 0.4, 0.6, 0.25, -0.25, 0.08)
    saturation, value = draw.choice(*BACKDROPS)
    soft, bright = draw.uniform(*saturation), draw.uniform(*value)
    near = behind + draw.uniform(-0.08, 0.08)
    upper = _rgb(behind, soft, bright)
    lower = _rgb(near, soft * draw.uniform(0.5, 1.2), bright * draw.uniform(0.8, 1.15))
    yaw = draw.uniform(-entry.view, entry.view) + (draw.choice(0, 180) if entry.behind else 0)
    return Look(
        yaw=yaw,
        elevation=draw.uniform(7, 34),
        light_yaw=yaw + draw.choice(-1, 1) * draw.uniform(20, 65),
        light_elevation=draw.uniform(38, 65),
        ambient=draw.uniform(0.42, 0.58),
        paints=paints,
        backdrop=(upper, lower),
        shadow=draw.uniform(0.3, 0.55),
        fill=draw.uniform(0.76, 0.9),
        shift=(draw.uniform(-0.03, 0.03), draw.uniform(-0.03, 0.03)),
    )
