"""The embedded data set `shapes`: seeded procedural meshes of everyday things with labelled parts, as point clouds and
as small colour pictures. Made in seconds, kept in a cache folder, the same on every machine."""

from shared_attn.shapes.catalogue import (
    CLASS_NAMES,
    CLASS_PART_COUNT,
    CLASS_PART_START,
    NUM_PARTS,
    PART_NAMES,
    create_mesh,
)
from shared_attn.shapes.datasets import ShapeClouds, ShapeImages, load_clouds, load_images
from shared_attn.shapes.mesh import LabelledMesh
from shared_attn.shapes.rendering import render
from shared_attn.shapes.sampling import sample_surface

__all__ = [
    "CLASS_NAMES",
    "CLASS_PART_COUNT",
    "CLASS_PART_START",
    "NUM_PARTS",
    "PART_NAMES",
    "LabelledMesh",
    "ShapeClouds",
    "ShapeImages",
    "create_mesh",
    "load_clouds",
    "load_images",
    "render",
    "sample_surface",
]
