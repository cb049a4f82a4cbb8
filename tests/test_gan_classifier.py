"""The classifier behind cifar10net: its forward against a loop, its training, its file, and what is shipped."""

from __future__ import annotations

import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan.data.datasets import load_image_set
from gan.judging import classifier_training
from gan.judging.classifier import Classifier, initialise
from gan.judging.classifier_options import ClassifierConfig
from gan.judging.classifier_training import accuracy, load_classifier, rate, to_input, train_classifier
from gan.judging.evaluation import evaluate
from gan.judging.features import load_classifier_features, load_features
from shared_attn.runtime.weights import SHIPPED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright images with noise: two classes that any classifier can learn."""
    path = tmp_path_factory.mktemp("images") / "light-train.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(48):
            bright = number % 2
            pixels = random.integers(90 * bright, 130 + 90 * bright, 32 * 32 * 3, dtype=np.uint8)
            archive.writestr(f"{('dark', 'light')[bright]}/{number}.ppm", b"P6 32 32 255\n" + pixels.tobytes())
    return path


@pytest.fixture
def config(images: Path, tmp_path: Path) -> ClassifierConfig:
    short = ClassifierConfig(data=str(images), test=str(images), out=tmp_path / "run", epochs=3, batch_size=20)
    return replace(short, device="cpu", precision="fp32")


def test_forward_is_the_layers_one_after_the_other() -> None:
    torch.manual_seed(1)
    network = Classifier(3, (4, 5, 6)).double().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    state = network.state_dict()

    def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], stride=stride, padding=1)
        mean, variance, scale, shift = (
            state[f"{name}.1.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    pictures = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    x = block(pictures, "stem")
    for stage in (0, 1):
        x = block(x, f"stages.{stage}.shrink", stride=2)
        x = x + block(x, f"stages.{stage}.refine")
    network.head.float()  # the head runs in float32, as features do
    features, logits = network(pictures)
    assert x.shape == (2, 6, 4, 4)
    torch.testing.assert_close(features.double(), x.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, F.linear(features, network.head.weight, network.head.bias))
    assert (features >= 0).all()


def test_rate_rises_over_a_fifth_and_falls_to_zero() -> None:
    parts = [rate(part) for part in (0, 0.1, 0.2, 0.6, 1)]
    assert parts == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_training_learns_and_its_file_says_what_it_is(config: ClassifierConfig) -> None:
    train_classifier(config)
    record = json.loads((config.out / "record.json").read_text())
    assert record["kind"] == "classifier" and record["metrics"] == {"test_accuracy": 1.0}
    assert [shown for shown, _ in record["curves"]["classifier_loss"]] == [60, 100, 144]
    network, header, path = load_classifier(config.out, CPU)
    assert header["class_names"] == ["dark", "light"] and header["metrics"] == {"test_accuracy": 1.0}
    assert header["data"]["train"]["name"] == "light-train.zip" and path == config.out / "weights.safetensors"
    assert accuracy(network, load_image_set(config.data, 32), CPU) == 1.0
    assert record["parameters"] == sum(parameter.numel() for parameter in network.parameters()) < 1e6
    train_classifier(config)  # a finished run is left as it is
    again, _, _ = load_classifier(config.out, CPU)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_resumed_training_is_the_uninterrupted_one(config: ClassifierConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    train_classifier(config)
    whole = (config.out / "weights.safetensors").read_bytes()
    steps = itertools.count()
    broken = replace(config, out=config.out.parent / "broken")

    def interrupt(images: Tensor) -> Tensor:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return translation(images)

    translation = classifier_training.translation
    monkeypatch.setattr(classifier_training, "translation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(broken)
    train_classifier(broken)
    assert next(steps) > 6, "it went on from the first epoch's end"
    states = [load_classifier(out, CPU)[0].state_dict() for out in (config.out, broken.out)]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True)) and whole


def test_mistakes_are_told(config: ClassifierConfig, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("cat/0.ppm", b"P6 32 32 255\n" + bytes(3072))
    for words, wrong in {
        "--epochs 0: expected": replace(config, epochs=0),
        "--batch-size 0: expected": replace(config, batch_size=0),
        "--lr 0.0: expected": replace(config, lr=0.0),
        "--weight-decay -1": replace(config, weight_decay=-1),
        "--data nowhere: no such": replace(config, data="nowhere"),
        "--test nowhere: no such": replace(config, test="nowhere"),
        "--test .*other.zip: its classes are not those of --data": replace(config, test=str(other)),
        "training diverged before": replace(config, lr=1e30),
    }.items():
        with pytest.raises((ValueError, OSError), match=words):
            train_classifier(wrong)
    with pytest.raises(ValueError, match="another configuration lies there"):
        train_classifier(replace(config, seed=5))


def test_initialisation_keeps_the_scale() -> None:
    """He's: activations neither vanish nor explode from layer to layer, and all classes are equally likely."""
    torch.manual_seed(0)
    network = Classifier(10)
    initialise(network)
    x = torch.randn(16, 3, 32, 32)
    features, logits = network(x)
    assert (logits == 0).all() and 0.1 < float(features.std()) < 3


def test_images_of_other_sizes_are_brought_to_its_own() -> None:
    small = (torch.arange(32)[:, None] * 4 + torch.arange(32) * 3).byte().expand(2, 3, 32, 32)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(to_input(small), small.float() / 127.5 - 1)
    assert to_input(large).shape == (2, 3, 32, 32)
    assert float((to_input(large) - to_input(small)).abs().max()) < 0.03


def test_another_classifier_has_another_name(config: ClassifierConfig) -> None:
    train_classifier(config)
    network = load_classifier_features(str(config.out), CPU)
    assert network.name.startswith("classifier_") and network.class_names == ("dark", "light")
    data = load_image_set(config.data, 32)
    order = torch.arange(48).reshape(2, 24).T.flatten()  # classes in turn, as samples come
    samples = data.images[order].permute(0, 3, 1, 2)
    values = evaluate(samples.split(10), 48, data, network, ["fd", "class_accuracy"], references=0)
    assert values[f"class_accuracy_{network.name}_48"] == 1
    assert values[f"fd_{network.name}_48_train"] == pytest.approx(0, abs=1e-5)


def test_shipped_classifier_is_as_good_as_its_record_says(shared_data: Path) -> None:
    network, header, path = load_classifier("cifar10net", CPU)
    record = json.loads((SHIPPED.parent / "records" / "cifar10net.json").read_text())
    assert path.stat().st_size < 4 * 2**20 and header["metrics"] == record["metrics"]
    assert header["metrics"]["test_accuracy"] >= 0.8
    data = load_image_set(str(shared_data / "cifar10-test.zip"), 32)
    part = replace(data, images=data.images[::10], labels=data.labels[::10])
    assert accuracy(network, part, CPU) == pytest.approx(header["metrics"]["test_accuracy"], abs=0.04)


def test_distance_on_the_shipped_classifier_grows_with_every_kind_of_damage(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path))
    data = load_image_set(str(shared_data / "cifar10-test.zip"), 32)
    network = load_features("cifar10net", CPU)
    assert network is not None and network.name == "cifar10net"
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    clean = data.images[order[:500]].permute(0, 3, 1, 2)
    two_classes = data.images[data.labels < 2][:500].permute(0, 3, 1, 2)
    noisy = (clean.float() + 20 * torch.randn(clean.shape)).clamp(0, 255).byte()
    blurred = F.avg_pool2d(clean.float(), 3, 1, 1).byte()
    values = [
        evaluate(batch.split(100), 500, data, network, ["fd"], references=1000)["fd_cifar10net_500_test1k"]
        for batch in (clean, noisy, blurred, two_classes)
    ]
    assert all(value > 3 * values[0] for value in values[1:]), values
