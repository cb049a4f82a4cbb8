"""A small classifier and two small segmenters with random weights, and a box, for tests of users' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointcloud.classifier import PointClassifier
from pointcloud.models import CLASSIFIER, SEGMENTER
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime.weights import save_weights

VERTICES = np.array([[x, y, z] for z in (0.0, 3.0) for y in (0.0, 2.0) for x in (0.0, 1.0)])
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
FACES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
BOX_OFF = "\n".join(
    ["8 12 0", *(" ".join(map(str, v)) for v in VERTICES), *(f"3 {a} {b} {c}" for a, b, c in FACES.tolist())]
)


def write_small_models(folder: Path) -> Path:
    """classifier.safetensors, segmenter.safetensors (with categories) and uncategorised.safetensors in the folder."""
    torch.manual_seed(0)
    network: dict[str, Any] = {"attention": "external", "num_layers": 2, "fuse_channels": 24, "num_neighbours": 4}
    small = {**network, "embed_channels": [8, 8], "neighbour_channels": [12, 16], "num_centres": [16, 8]}
    classifier = {"num_classes": 6, "head_channels": [16, 12], **small}
    header: dict[str, Any] = {"num_points": 64, "class_names": list("abcdef"), "data": {"name": "own"}}
    state = PointClassifier(**classifier).state_dict()
    save_weights(folder / "classifier.safetensors", state, {**header, "kind": CLASSIFIER, "model": classifier})
    parts = {"part_names": [f"{c}/{p}" for c in "xy" for p in ("low", "high")], "class_names": ["x", "y"]}
    parts |= {"class_part_start": [0, 2], "class_part_count": [2, 2]}
    for name, categories in (("segmenter", 2), ("uncategorised", 0)):
        model = {
            "num_parts": 4,
            "num_categories": categories,
            "head_channels": [16, 12],
            "embed_channels": [8, 16],
            **network,
        }
        described = {**header, **parts, "kind": SEGMENTER, "model": model}
        save_weights(folder / f"{name}.safetensors", PartSegmenter(**model).state_dict(), described)
    return folder


def write_box(path: Path) -> Path:
    """The box 1 x 2 x 3 in any of the mesh formats."""
    import trimesh

    if path.suffix == ".off":
        path.write_text("OFF\n" + BOX_OFF)
    else:
        trimesh.Trimesh(VERTICES, FACES, process=False).export(path)
    return path
