"""Models by kind: made for a configuration and its data, written to and read from one .safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.clouds import CloudSet
from pointcloud.presets import Config, resolve_encoder
from pointcloud.segmenter import PartSegmenter
from shared_attn.runtime.launch import choose_device
from shared_attn.runtime.options import parse_options
from shared_attn.runtime.weights import find_weights, load_weights

CLASSIFIER, SEGMENTER = "pointcloud.classifier", "pointcloud.segmenter"
MODELS: dict[str, type[nn.Module]] = {CLASSIFIER: PointClassifier, SEGMENTER: PartSegmenter}
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
        raise ValueError(f"{path}: holds a {header['kind']}, expected {' or '.join(MODELS)}")
    try:
        network = MODELS[header["kind"]](**header["model"])
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: the weights do not fit their description ({' '.join(str(error).split())})"
        ) from error
    return LoadedModel(network.eval().requires_grad_(False).to(place), header, path)


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
