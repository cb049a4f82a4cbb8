"""The classes of the data set: what builds each, its parts, and what they are made of.

To add a class: write a function of a Draw that yields (part name, Solid) pairs, and enter it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared_attn.shapes.draw import Draw
from shared_attn.shapes.furniture import bed, bookshelf, chair, sofa, table
from shared_attn.shapes.handheld import guitar, hammer, hat, headphones
from shared_attn.shapes.mesh import LabelledMesh, assemble
from shared_attn.shapes.primitives import Solid
from shared_attn.shapes.vehicles import aeroplane, car, rocket
from shared_attn.shapes.vessels import bottle, lamp, mug, teapot


@dataclass(frozen=True)
class ShapeClass:
    """build draws one sample. parts: name -> materials, one of which a picture takes (see materials.py; "=other" copies
    another part's colour). view: largest angle in degrees between the front and a picture's camera; behind: the camera
    may also stand on the opposite side."""

    build: Callable[[Draw], Iterable[tuple[str, Solid]]]
    parts: dict[str, tuple[str, ...]]
    view: float = 180.0
    behind: bool = False


CATALOGUE = {
    "aeroplane": ShapeClass(
        aeroplane,
        {
            "body": ("white", "paint", "metal", "paint"),
            "wing": ("=body", "=body", "paint", "metal"),
            "tail": ("accent", "=wing", "accent"),
            "engine": ("metal", "accent", "dark"),
        },
    ),
    "bed": ShapeClass(
        bed,
        {
            "frame": ("wood", "wood", "white", "dark"),
            "headboard": ("=frame", "=frame", "fabric"),
            "mattress": ("white",),
            "pillow": ("white", "accent", "fabric"),
            "blanket": ("fabric", "paint"),
        },
        view=125.0,
    ),
    "bookshelf": ShapeClass(
        bookshelf,
        {
            "frame": ("wood", "wood", "white", "dark", "paint"),
            "shelf": ("=frame", "=frame", "wood"),
            "book": ("books",),
        },
        view=62.0,
    ),
    "bottle": ShapeClass(
        bottle,
        {
            "body": ("glass", "glass", "paint", "dark"),
            "neck": ("=body",),
            "cap": ("accent", "metal", "dark", "wood"),
            "label": ("white", "accent", "white"),
        },
    ),
    "car": ShapeClass(
        car,
        {
            "body": ("paint", "paint", "paint", "metal", "white", "dark"),
            "cabin": ("window",),
            "wheel": ("rubber",),
            "hub": ("metal", "white", "metal"),
            "light": ("glow",),
        },
    ),
    "chair": ShapeClass(
        chair,
        {
            "seat": ("fabric", "wood", "paint"),
            "back": ("=seat", "=seat", "wood", "accent"),
            "leg": ("wood", "metal", "dark", "=seat"),
            "arm": ("=leg", "=leg", "=back"),
        },
    ),
    "guitar": ShapeClass(
        guitar,
        {
            "body": ("wood", "amber", "paint", "paint"),
            "neck": ("wood", "dark"),
            "head": ("=neck", "dark", "=body"),
            "bridge": ("dark", "dark", "metal"),
        },
        view=58.0,
    ),
    "hammer": ShapeClass(
        hammer,
        {
            "handle": ("wood", "wood", "amber", "paint"),
            "head": ("metal", "metal", "dark"),
            "grip": ("accent", "rubber"),
        },
        view=65.0,
    ),
    "hat": ShapeClass(
        hat,
        {
            "crown": ("fabric", "dark", "straw", "fabric"),
            "brim": ("=crown", "=crown", "accent"),
            "band": ("accent", "dark"),
        },
        view=110.0,
    ),
    "headphones": ShapeClass(
        headphones,
        {
            "band": ("dark", "metal", "paint", "white"),
            "cup": ("paint", "=band", "accent"),
            "pad": ("rubber", "fabric"),
            "microphone": ("dark",),
        },
        view=70.0,
    ),
    "lamp": ShapeClass(
        lamp,
        {
            "base": ("metal", "wood", "dark", "ceramic"),
            "pole": ("=base", "=base", "metal", "ceramic"),
            "shade": ("cream", "paint", "fabric"),
            "bulb": ("glow",),
        },
    ),
    "mug": ShapeClass(
        mug,
        {"body": ("ceramic", "paint", "white"), "handle": ("=body", "=body", "accent"), "saucer": ("=body", "white")},
        view=40.0,
        behind=True,
    ),
    "rocket": ShapeClass(
        rocket,
        {
            "body": ("white", "white", "paint", "metal"),
            "nose": ("accent", "accent", "=body"),
            "fin": ("=nose", "accent", "accent"),
            "engine": ("dark", "metal"),
            "booster": ("=body", "accent"),
            "window": ("window", "glow"),
        },
        view=75.0,
    ),
    "sofa": ShapeClass(
        sofa,
        {
            "seat": ("fabric", "fabric", "leather"),
            "back": ("=seat",),
            "arm": ("=seat", "=seat", "wood"),
            "foot": ("wood", "metal", "dark"),
            "cushion": ("accent", "paint"),
        },
        view=75.0,
    ),
    "table": ShapeClass(
        table,
        {
            "top": ("wood", "wood", "white", "paint"),
            "leg": ("=top", "wood", "metal", "dark"),
            "shelf": ("=top", "=leg"),
        },
    ),
    "teapot": ShapeClass(
        teapot,
        {
            "body": ("ceramic", "ceramic", "metal", "paint"),
            "lid": ("=body", "=body", "accent"),
            "spout": ("=body",),
            "handle": ("=body", "dark", "accent"),
        },
        view=60.0,
        behind=True,
    ),
}

CLASS_NAMES: tuple[str, ...] = tuple(CATALOGUE)
PART_NAMES: tuple[str, ...] = tuple(f"{name}/{part}" for name, entry in CATALOGUE.items() for part in entry.parts)
NUM_PARTS = len(PART_NAMES)
CLASS_PART_COUNT: tuple[int, ...] = tuple(len(entry.parts) for entry in CATALOGUE.values())
CLASS_PART_START: tuple[int, ...] = tuple(sum(CLASS_PART_COUNT[:number]) for number in range(len(CATALOGUE)))


def create_mesh(class_name: str, seed: int) -> LabelledMesh:
    """The mesh of a class that belongs to a seed; ValueError where there is no such class."""
    if class_name not in CATALOGUE:
        raise ValueError(f"no shape class {class_name!r}; there are {', '.join(CLASS_NAMES)}")
    entry = CATALOGUE[class_name]
    start = CLASS_PART_START[CLASS_NAMES.index(class_name)]
    number = {part: start + i for i, part in enumerate(entry.parts)}
    return assemble(class_name, ((number[part], solid) for part, solid in entry.build(Draw("mesh", class_name, seed))))
