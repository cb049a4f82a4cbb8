"""Models by kind: made for a configuration and its data, written to and read from one .safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.clouds import CloudSet
from pointcloud.presets import Config, resolve_encoder
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime.launch import choose_device
from shared_attn.runtime.options import parse_options
from shared_attn.runtime.rebuilding import rebuild
from shared_attn.runtime.weights import find_weights, load_weights

CLASSIFIER, SEGMENTER = "pointcloud.classifier", "pointcloud.segmenter"
MODELS: dict[str, type[nn.Module]] = {CLASSIFIER: PointClassifier, SEGMENTER: PartSegmenter}
MOST_POINTS = 2**20  # of a cloud that a network sees at once
KINDS = {"classify": CLASSIFIER, "segment": SEGMENTER}


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode with what its file says about it.

    `header` holds kind, model (the constructor's keywords), class_names, data, metrics, num_points, and for a segmenter
    part_names, class_part_start and class_part_count.
    """

    network: nn.Module
    header: dict[str, Any]
    path: Path

    @property
    def class_names(self) -> list[str]:
        return self.header["class_names"]

    @property
    def num_points(self) -> int:
        return self.header["num_points"]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def __call__(self, points: Tensor, category: Tensor | None = None) -> Tensor:
        """Logits of clouds (B, N, 3) in the unit sphere; a segmenter trained with categories wants them (B,) too.

        Computed on the network's device, returned on the clouds'.
        """
        inputs = (points,) if category is None else (points, category)
        return self.network(*(tensor.to(self.device) for tensor in inputs)).to(points.device)


def load_model(source: str | Path, kind: str | None = None, *, device: str = "cpu") -> LoadedModel:
    """Rebuilds a network from a run's folder, a .safetensors file, or the name of shipped weights.

    Args:
        source: see `shared_attn.runtime.weights.find_weights`.
        kind: "pointcloud.classifier" or "pointcloud.segmenter", where only that will do.
        device: see `shared_attn.runtime.launch.choose_device`.

    Raises:
        ValueError, FileNotFoundError: no such weights, not a point network's, of another kind, or damaged.
    """
    place = choose_device(device)
    path = find_weights(source)
    state, header = load_weights(path, kind)
    if header["kind"] not in MODELS:
        raise ValueError(f"{path}: holds a {header['kind'][:40]}, expected {' or '.join(MODELS)}")
    try:
        check_header(header)
        network = rebuild(MODELS[header["kind"]], header["model"], state)
    except ValueError as error:
        raise ValueError(f"{path}: the weights do not fit their description ({error})") from error
    return LoadedModel(network.eval().requires_grad_(False).to(place), header, path)


def check_header(header: dict[str, Any]) -> None:
    """Refuses a description that lacks what every user of a network relies on, or says what cannot be.

    Raises:
        ValueError: in one line without the file's name.
    """
    model, points = header.get("model"), header.get("num_points")
    if not isinstance(model, dict) or not all(isinstance(header.get(name, {}), dict) for name in ("data", "metrics")):
        raise ValueError("model, data and metrics: expected an object each")
    if not _are_whole([points], 1, MOST_POINTS):
        raise ValueError(f"num_points {str(points)[:40]}: expected 1 to {MOST_POINTS}")
    names = _read_names(header, "class_names")
    if header["kind"] == CLASSIFIER:
        if model.get("num_classes") != len(names):
            raise ValueError(f"{len(names)} class_names for {str(model.get('num_classes'))[:40]} classes")
        return
    parts = _read_names(header, "part_names")
    start, count = header.get("class_part_start"), header.get("class_part_count")
    if model.get("num_parts") != len(parts) or model.get("num_categories", 0) not in (0, len(names)):
        raise ValueError(f"{len(parts)} part_names and {len(names)} class_names do not fit the model's numbers")
    if not (_are_whole(start, 0, len(parts)) and _are_whole(count, 1, len(parts)) and len(start) == len(count)):
        raise ValueError("class_part_start and class_part_count: expected a whole number for each class")
    if len(start) != len(names) or any(a + b > len(parts) for a, b in zip(start, count, strict=True)):
        raise ValueError("class_part_start and class_part_count do not fit the part_names")


def _read_names(header: dict[str, Any], key: str) -> list[str]:
    names = header.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key}: expected a list of names")
    return names


def _are_whole(numbers: Any, least: int, most: int) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and least <= n <= most for n in numbers)


def model_keywords(config: Config, clouds: CloudSet) -> dict[str, Any]:
    """The constructor's keywords, JSON-able, of the network that `config` describes for these clouds."""
    options = parse_options(config.attention_options, "--attention-options")
    config = resolve_encoder(config)
    keywords: dict[str, Any] = {
        "attention": config.attention,
        "form": config.form,
        "attention_options": options,
        "num_layers": config.num_layers,
        "embed_channels": list(config.embed_channels or ()),
        "neighbour_channels": list(config.neighbour_channels or ()),
        "num_centres": list(config.num_centres or ()),
        "num_neighbours": config.num_neighbours,
        "stem_layers": config.stem_layers,
        "position_embedding": config.position_embedding,
        "fuse_channels": config.fuse_channels,
        "head_channels": list(config.head_channels),
        "dropout": config.dropout,
        "drop_path": config.drop_path,
    }
    if config.task == "classify":
        return {"num_classes": len(clouds.class_names), "pooling": config.pooling, **keywords}
    categories = len(clouds.class_names) if config.categories else 0
    return {"num_parts": len(clouds.part_names), "num_categories": categories, **keywords}


def create_model(config: Config, clouds: CloudSet) -> nn.Module:
    """The network that `config` describes; what its parts refuse is a user's mistake."""
    return MODELS[KINDS[config.task]](**model_keywords(config, clouds))


def describe_model(config: Config, clouds: CloudSet, metrics: dict[str, float], shown: int) -> dict[str, Any]:
    """The header of the weights' file."""
    header: dict[str, Any] = {
        "kind": KINDS[config.task],
        "name": config.name,
        "model": model_keywords(config, clouds),
        "class_names": clouds.class_names,
        "num_points": config.evaluate_points or config.num_points,
        "data": {**clouds.source, "files": [Path(file).name for file in clouds.source["files"]], "up": "z"},
        "metrics": metrics,
        "shown": shown,
    }
    if config.task == "segment":
        header["part_names"] = clouds.part_names
        header["class_part_start"], header["class_part_count"] = clouds.part_start, clouds.part_count
    return header
