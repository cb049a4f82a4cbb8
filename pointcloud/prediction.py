"""Answers about users' files: what a mesh or a cloud shows, and which parts it has. All sampling is seeded.

N points, K classes, S parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pointcloud.clouds import normalise
from pointcloud.evaluation import takes_category
from pointcloud.meshes import Shape, read_shape
from pointcloud.models import LoadedModel

SAMPLINGS = 8  # samplings of a shape whose answers are averaged
Up = Literal["z", "y", "auto"]


def classify_file(model: LoadedModel, path: str | Path, *, up: Up = "z", samplings: int = SAMPLINGS) -> dict[str, Any]:
    """What the network takes a file for: {"file", "class", "probability", "top5": [{"class", "probability"}]}.

    The probabilities are means over several seeded samplings of the surface (or of the cloud), each normalised to the
    unit sphere around its centroid, as the training clouds are.

    Args:
        up: which of the file's axes is up; "auto" tries z and y and keeps the one the network is surer of.
    """
    shape = read_shape(path, "y" if up == "y" else "z")
    probabilities = _class_probabilities(model, shape, samplings)
    if up == "auto":
        turned = _class_probabilities(model, shape.turned(), samplings)
        probabilities = turned if turned.max() > probabilities.max() else probabilities
    best = probabilities.topk(min(5, len(probabilities)))
    top = [
        {"class": model.class_names[number], "probability": round(value, 6)}
        for value, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return {"file": str(path), **top[0], "top5": top}


def _class_probabilities(model: LoadedModel, shape: Shape, samplings: int) -> Tensor:
    """(K,) float64."""
    clouds = [normalise(shape.sample(model.num_points, seed)) for seed in range(samplings)]
    return model(torch.from_numpy(np.stack(clouds)).float()).double().softmax(-1).mean(0)


@dataclass(frozen=True)
class Segmentation:
    """A segmented file: points (N, 3) as in the file (turned to z up) with their parts (N,), and for a mesh the part of
    each face; `category` is the class whose parts they are, None where the network knows none."""

    shape: Shape
    points: np.ndarray
    parts: np.ndarray
    face_parts: np.ndarray | None
    category: str | None


def segment_file(
    model: LoadedModel,
    path: str | Path,
    *,
    category: str | None = None,
    up: Literal["z", "y"] = "z",
    samplings: int = 4,
) -> Segmentation:
    """The parts of a mesh or cloud.

    Seeded samplings of the shape are segmented; every point of a cloud and every face of a mesh (by its centroid) takes
    the part of the sampled point nearest to it. `points` are a cloud's own, or a mesh's samples.

    Args:
        category: one of the model's classes. Where it is not given, every class is tried, and the one kept whose own
            parts get the highest probability, averaged over the points.

    Raises:
        ValueError, FileNotFoundError: a file that cannot be read, an unknown category, or one for a network without.
    """
    shape = read_shape(path, up)
    samples = [shape.sample(model.num_points, seed) for seed in range(samplings)]
    clouds = torch.from_numpy(np.stack([normalise(sample) for sample in samples])).float()
    if takes_category(model.network):
        number = _choose_category(model, clouds[:1]) if category is None else _find_category(model, category)
        logits = model(clouds, torch.full((samplings,), number))  # (samplings, N, S)
        start, count = model.header["class_part_start"][number], model.header["class_part_count"][number]
        sampled_parts = logits[..., start : start + count].argmax(-1) + start
        category = model.class_names[number]
    elif category is not None:
        raise ValueError(f"--category {category}: these weights were trained without categories")
    else:
        sampled_parts = model(clouds).argmax(-1)
    places, parts = np.concatenate(samples), sampled_parts.flatten().numpy()
    if shape.faces is None:
        return Segmentation(shape, shape.points, _nearest(places, parts, shape.points), None, category)
    centroids = shape.points[shape.faces].mean(1)
    return Segmentation(shape, places, parts, _nearest(places, parts, centroids), category)


def _choose_category(model: LoadedModel, cloud: Tensor) -> int:
    """The category whose own parts have the largest probability in the mean over the points of a cloud (1, N, 3)."""
    likelihoods = []
    for number, (start, count) in enumerate(
        zip(model.header["class_part_start"], model.header["class_part_count"], strict=True)
    ):
        probabilities = model(cloud, torch.tensor([number])).softmax(-1)
        likelihoods.append(float(probabilities[..., start : start + count].amax(-1).mean()))
    return int(np.argmax(likelihoods))


def _find_category(model: LoadedModel, category: str) -> int:
    lowered = [name.lower() for name in model.class_names]
    if category.lower() not in lowered:
        raise ValueError(f"--category {category}: expected one of {', '.join(model.class_names)}")
    return lowered.index(category.lower())


def _nearest(places: np.ndarray, parts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return parts[cKDTree(places).query(queries)[1]]


def save_segmentation(model: LoadedModel, result: Segmentation, stem: Path) -> list[Path]:
    """Writes stem.ply (the whole shape, coloured), stem.png and stem.html (its points, with a legend of the parts)."""
    import trimesh

    from pointcloud.pictures import part_colours, save_cloud_html, save_clouds_png
    from shared_attn.runtime.files import atomic_write

    names = model.header["part_names"]
    colours = part_colours(names)
    if result.face_parts is None:
        coloured: Any = trimesh.PointCloud(result.points, colors=colours[result.parts])
    else:
        mesh = result.shape
        coloured = trimesh.Trimesh(mesh.points, mesh.faces, face_colors=colours[result.face_parts], process=False)
    paths = [stem.with_name(stem.name + ending) for ending in (".ply", ".png", ".html")]
    with atomic_write(paths[0]) as file:
        file.write(coloured.export(file_type="ply"))
    title = stem.name if result.category is None else f"{stem.name}: {result.category}"
    save_clouds_png([result.points], [result.parts], names, paths[1], titles=[title])
    save_cloud_html(result.points, result.parts, names, paths[2], title=title)
    return paths


def describe_parts(model: LoadedModel, result: Segmentation) -> str:
    """The category and the share of the points in each part, largest first."""
    counts = np.bincount(result.parts, minlength=len(model.header["part_names"]))
    order = [number for number in counts.argsort()[::-1] if counts[number]]
    names = [model.header["part_names"][number].rpartition("/")[2] for number in order]
    shares = ", ".join(f"{name} {counts[number] / counts.sum():.0%}" for name, number in zip(names, order, strict=True))
    return shares if result.category is None else f"{result.category}: {shares}"
