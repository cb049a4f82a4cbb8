"""A set of labelled point clouds in memory, and the .npz layout it is stored in.

Layout: points (D, P, 3) int16, times scale = coordinates in the unit sphere around the cloud's centroid; label (D,)
index into class_names; name (D,). With parts also part_label (D, P) global part ids, part_names, class_part_start and
class_part_count (a class owns ids start .. start + count - 1).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_attn.runtime.arrays import load_arrays
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.messages import first_line

SCALE = 1 / 4096
LAYOUT = ("points", "label", "class_names", "scale", "part_label", "part_names", "class_part_start", "class_part_count")


@dataclass(frozen=True)
class CloudSet:
    """points (D, P, 3) int16 in units of `unit`; label (D,) int64; part_label (D, P) uint8 or None."""

    points: Tensor
    label: Tensor
    class_names: list[str]
    unit: float = SCALE
    part_label: Tensor | None = None
    part_names: list[str] = field(default_factory=list)
    part_start: list[int] = field(default_factory=list)
    part_count: list[int] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: name, split, files."""

    def __len__(self) -> int:
        return len(self.label)

    def select(self, items: Tensor) -> CloudSet:
        """The set of these items (indices), in their order."""
        parts = None if self.part_label is None else self.part_label[items]
        return replace(self, points=self.points[items], label=self.label[items], part_label=parts)

    def fingerprint(self) -> int:
        """A checksum of what the set holds, to notice that a resumed run sees other data."""
        arrays = [self.points, self.label, *([] if self.part_label is None else [self.part_label])]
        return reduce(lambda crc, array: zlib.crc32(array.cpu().numpy().tobytes(), crc), arrays, 0)

    def to(self, device: torch.device | str) -> CloudSet:
        parts = None if self.part_label is None else self.part_label.to(device)
        return replace(self, points=self.points.to(device), label=self.label.to(device), part_label=parts)


def read_clouds_file(path: Path, *, source: Mapping[str, Any] | None = None) -> CloudSet:
    """Reads and checks one .npz of the layout above; no pickle is loaded.

    Raises:
        ValueError: not such a file; the message names the file and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        arrays = load_arrays(path, LAYOUT)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable .npz of plain arrays ({first_line(error)})") from error
    problem = next(_problems(arrays), None)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    parts: dict[str, Any] = {}
    if "part_label" in arrays:
        parts = {
            "part_label": torch.from_numpy(arrays["part_label"].astype(np.uint8)),
            "part_names": [str(name) for name in arrays["part_names"]],
            "part_start": arrays["class_part_start"].astype(int).tolist(),
            "part_count": arrays["class_part_count"].astype(int).tolist(),
        }
    return CloudSet(
        points=torch.from_numpy(np.ascontiguousarray(arrays["points"])),
        label=torch.from_numpy(arrays["label"].astype(np.int64)),
        class_names=[str(name) for name in arrays["class_names"]],
        unit=float(arrays["scale"]),
        source={"name": path.stem, "split": "all", **(source or {}), "files": [str(path)]},
        **parts,
    )


def write_clouds_file(path: Path, clouds: CloudSet, names: list[str], *, origin: str = "") -> None:
    """Writes a set in the layout above; `origin` says how it was made."""
    parts: dict[str, Any] = {}
    if clouds.part_label is not None:
        parts = {
            "part_label": clouds.part_label.numpy(),
            "part_names": np.array(clouds.part_names),
            "class_part_start": np.array(clouds.part_start, dtype=np.uint8),
            "class_part_count": np.array(clouds.part_count, dtype=np.uint8),
        }
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            points=clouds.points.numpy(),
            label=clouds.label.numpy().astype(np.min_scalar_type(len(clouds.class_names) - 1)),
            name=np.array(names),
            class_names=np.array(clouds.class_names),
            scale=np.float32(clouds.unit),
            origin=np.array(origin),
            **parts,
        )


def read_origin(path: Path) -> str:
    """What `write_clouds_file` was told about a file; "" where it was not, or the file is none of its own."""
    try:
        return str(load_arrays(path, ("origin",))["origin"])
    except (OSError, ValueError, KeyError):
        return ""


def draw_order(total: int, count: int, seed: int) -> np.ndarray:
    """(count,) indices into `total` things, random: none twice where they suffice, else each as often as can be."""
    generator = np.random.default_rng(seed)
    whole = [generator.permutation(total) for _ in range(count // total)]
    return np.concatenate([*whole, generator.choice(total, count % total, replace=False)])


def unique_names(members: Sequence[PurePath]) -> list[str]:
    """The files' stems; where one occurs twice, all with as much of their path in front as tells them apart."""
    stems = [member.stem for member in members]
    for names in (stems, [f"{member.parent.parent.name}/{member.stem}" for member in members]):
        if len(set(names)) == len(names):
            return names
    return [str(member) for member in members]


def quantise(points: np.ndarray) -> np.ndarray:
    """(..., P, 3) coordinates in the unit sphere -> int16 in units of 1/4096."""
    return np.round(points / SCALE).clip(-(2**15), 2**15 - 1).astype(np.int16)


def normalise(points: np.ndarray) -> np.ndarray:
    """(P, 3) moved to its centroid and scaled into the unit sphere; a cloud of one distinct point stays at 0."""
    points = points - points.mean(0)
    radius = np.linalg.norm(points, axis=1).max()
    return points / radius if radius > 0 else points


def _problems(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What is wrong, the first thing first; what follows may rely on what came before being right."""
    missing = [name for name in ("points", "label", "class_names", "scale") if name not in arrays]
    if missing:
        yield f"lacks {', '.join(missing)}; expected points, label, class_names, scale (and name)"
    points, label, names, scale = (arrays[name] for name in ("points", "label", "class_names", "scale"))
    if points.dtype != np.int16 or points.ndim != 3 or points.shape[2] != 3 or 0 in points.shape:
        yield f"points is {points.dtype} {points.shape}, expected int16 (shapes, points, 3)"
    if label.shape != points.shape[:1] or label.dtype.kind not in "iu":
        yield f"label is {label.dtype} {label.shape}, expected one integer for each of {len(points)} shapes"
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) == 0:
        yield f"class_names is {names.dtype} {names.shape}, expected a list of names"
    if label.min() < 0 or label.max() >= len(names):
        yield f"label runs from {label.min()} to {label.max()}, expected 0 to {len(names) - 1}, for the class_names"
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not np.isfinite(scale).all() or scale.item() <= 0:
        yield f"scale is {scale}, expected one positive number"
    if "part_label" in arrays:
        yield from _part_problems(arrays)


def _part_problems(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    missing = [name for name in ("part_names", "class_part_start", "class_part_count") if name not in arrays]
    if missing:
        yield f"has part_label but lacks {', '.join(missing)}"
    parts, start, count = arrays["part_label"], arrays["class_part_start"], arrays["class_part_count"]
    if parts.shape != arrays["points"].shape[:2] or parts.dtype.kind not in "iu":
        yield f"part_label is {parts.dtype} {parts.shape}, expected an integer for each point"
    classes = arrays["class_names"].shape
    if any(array.shape != classes or array.dtype.kind not in "iu" for array in (start, count)):
        yield "class_part_start and class_part_count: expected one integer for each class"
    first = start.astype(int)[arrays["label"]][:, None]
    last = first + count.astype(int)[arrays["label"]][:, None] - 1
    if (parts < first).any() or (parts > last).any() or last.max() >= len(arrays["part_names"]):
        yield "part_label holds ids outside the range that class_part_start and class_part_count give the shape's class"
