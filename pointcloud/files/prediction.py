"""What users' meshes and clouds show, by a classifier: one file, or many in a stream. All sampling is seeded.

B clouds, N points, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pointcloud.clouds import normalise
from pointcloud.files.meshes import Shape, read_shape
from pointcloud.files.streaming import map_in_order
from pointcloud.files.user_files import UserFile
from pointcloud.models import LoadedModel

SAMPLINGS = 8  # samplings of a shape whose answers are averaged
FILES_AT_ONCE = 32  # through the network on a GPU; a CPU is as fast with one
Axis = Literal["z", "y"]
Up = Literal["z", "y", "auto"]


@dataclass(frozen=True)
class Answer:
    """What a file is taken for: its five likeliest classes, the likeliest first, and the axis taken to be up."""

    file: str
    top: list[dict[str, Any]]
    up: Axis

    def as_dict(self) -> dict[str, Any]:
        """{"file", "class", "probability", "top5": [{"class", "probability"}]}."""
        return {"file": self.file, **self.top[0], "top5": self.top}


def classify_file(model: LoadedModel, path: str | Path, *, up: Up = "z", samplings: int = SAMPLINGS) -> dict[str, Any]:
    """What the network takes a file for: {"file", "class", "probability", "top5": [{"class", "probability"}]}.

    The probabilities are means over several seeded samplings of the surface (or of the cloud), each normalised to the
    unit sphere around its centroid, as the training clouds are.

    Args:
        up: which of the file's axes is up; "auto": see `possible_axes`; of two the one the network is surer of.

    Raises:
        ValueError, FileNotFoundError: in one line, naming the file and what is wrong with it.
    """
    _, answer = next(classify_files(model, [UserFile(Path(path))], up=up, samplings=samplings))
    if isinstance(answer, Exception):
        raise answer
    return answer.as_dict()


def classify_files(
    model: LoadedModel,
    files: Iterable[UserFile],
    *,
    up: Up = "z",
    samplings: int = SAMPLINGS,
    pool: ThreadPoolExecutor | None = None,
) -> Iterator[tuple[UserFile, Answer | ValueError | OSError]]:
    """`classify_file` over many files, in their order; one that cannot be read has its error as its answer.

    The answers do not depend on how many files there are. Given a pool, its threads read the next files while the
    network is at work; memory does not grow with the number of files.
    """

    def prepare(file: UserFile) -> list[np.ndarray]:
        shape = read_user_file(file)
        return [sample_clouds(shape, axis, model.num_points, samplings)[1] for axis in possible_axes(file.path, up)]

    at_once = FILES_AT_ONCE if model.device.type == "cuda" else 1
    prepared = map_in_order(prepare, files, pool=pool, ahead=max(4, 2 * at_once), weigh=lambda file: file.size)
    for batch in _batches(prepared, at_once):
        clouds = [cloud for _, poses in batch if not isinstance(poses, Exception) for cloud in poses]
        logits = model(torch.from_numpy(np.concatenate(clouds))) if clouds else torch.empty(0)
        probabilities = iter(logits.double().softmax(-1).unflatten(0, (-1, samplings)).mean(1) if clouds else ())
        for file, poses in batch:
            if isinstance(poses, (ValueError, OSError)):
                yield file, poses
            else:
                yield file, _answer(model, file.path, up, [next(probabilities) for _ in poses])


def possible_axes(path: Path, up: Up) -> tuple[Axis, ...]:
    """The axes to try: the one that is told; for "auto" y where the format says so (glTF), else z and then y."""
    if up != "auto":
        return (up,)
    return ("y",) if path.suffix.lower() in (".glb", ".gltf") else ("z", "y")


def read_user_file(file: UserFile) -> Shape:
    """`read_shape`, as the file has it; a mistake of the command line or too little memory is the file's error too."""
    if file.mistake:
        raise ValueError(file.mistake)
    try:
        return read_shape(file.path)
    except MemoryError as error:
        raise ValueError(f"{file.path}: {file.size / 1e9:.1f} GB, too large for this machine's memory") from error


def sample_clouds(shape: Shape, axis: Axis, count: int, samplings: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeded samples of a shape: (B, N, 3) in its own coordinates, and as the network wants them, float32: with that
    axis up, in the unit sphere."""
    places = np.stack([shape.sample(count, seed) for seed in range(samplings)])
    clouds = np.stack([normalise(place if axis == "z" else Shape(place, None).turned().points) for place in places])
    return places, clouds.astype(np.float32)


def _answer(model: LoadedModel, path: Path, up: Up, poses: Sequence[Tensor]) -> Answer:
    """From the class probabilities (K,) of each pose; of equally sure ones the first counts."""
    surest = max(range(len(poses)), key=lambda pose: float(poses[pose].max()))
    best = poses[surest].topk(min(5, len(poses[surest])))
    top = [
        {"class": model.class_names[number], "probability": round(value, 6)}
        for value, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return Answer(str(path), top, possible_axes(path, up)[surest])


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
