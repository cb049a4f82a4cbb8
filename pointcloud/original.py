"""PCT_Pytorch's own network from a checkout at the user's path, to time and to compare with this package's.

Nothing of it is part of this package: its model.py and util.py are imported from where they lie, as they are. The CUDA
extension that they want, pointnet2_ops, is replaced by this package's farthest points where it is not installed, so the
network runs on a CPU too (and faster than it would with a sampling loop of its own).
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.geometry import farthest_points
from pointcloud.reference import PAIRS
from shared_attn.checkout import importable
from shared_attn.runtime.messages import one_line

FILES = ("model.py", "util.py")


class OriginalClassifier(nn.Module):
    """PCT_Pytorch's model.Pct behind this package's layout: (B, N, 3) -> logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        return self.network(points.transpose(1, 2).contiguous())


def load_original(path: str | Path, model: PointClassifier) -> OriginalClassifier:
    """The checkout's network with the weights of `model`, a PCT of the published sizes.

    Args:
        path: folder of a checkout of Strawberry-Eat-Mango/PCT_Pytorch. Its Python code is run.

    Raises:
        FileNotFoundError, ValueError: no such checkout, or one whose network is another.
    """
    folder = Path(path)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--original {folder}: no {' and no '.join(missing)}, expected a PCT_Pytorch checkout")
    dropout = next((layer.p for layer in model.head if isinstance(layer, nn.Dropout)), 0.0)
    classes = model.head[-1].out_features
    stand_ins = {} if importlib.util.find_spec("pointnet2_ops") and torch.cuda.is_available() else _sampling()
    try:
        with importable(folder, ("model", "util"), stand_ins):
            network = importlib.import_module("model").Pct(SimpleNamespace(dropout=dropout), output_channels=classes)
        network.load_state_dict(_renamed(network.state_dict(), model.state_dict()))
    except (ImportError, AttributeError, KeyError, RuntimeError, TypeError, SyntaxError) as error:
        raise ValueError(f"--original {folder}: not PCT_Pytorch's network as published ({one_line(error)})") from error
    return OriginalClassifier(network)


def _renamed(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names and in their shapes (1x1 convolutions have one more dimension)."""
    found = {}
    for name, value in theirs.items():
        owner, _, leaf = name.rpartition(".")
        found[name] = ours[f"{PAIRS[owner.replace('q_conv', 'k_conv')]}.{leaf}"].detach().clone().reshape(value.shape)
    return found


def _sampling() -> dict[str, ModuleType]:
    """Modules that offer what PCT_Pytorch takes from pointnet2_ops."""
    package, functions = ModuleType("pointnet2_ops"), ModuleType("pointnet2_ops.pointnet2_utils")
    functions.furthest_point_sample = lambda points, count: farthest_points(points, count).int()  # type: ignore[attr-defined]
    package.pointnet2_utils = functions  # type: ignore[attr-defined]
    return {"pointnet2_ops": package, "pointnet2_ops.pointnet2_utils": functions}
