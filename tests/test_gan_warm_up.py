"""The discriminator's warm-up: it learns the classes, by their embedding alone, and stops when it is asked to."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gan.data.batches import ImageStream
from gan.data.datasets import ImageSet
from gan.discriminator import Discriminator
from gan.presets import GanConfig
from gan.warm_up import warm_up
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.launch import create_fabric

CONFIG = GanConfig(batch_size=8, group_size=4, warm_up=1024)


@pytest.fixture(scope="module")
def stream() -> ImageStream:
    """Noise whose mean differs a little between the three classes, in one colour each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randint(0, 160, (96, 32, 32, 3), generator=generator)
    images[torch.arange(96), :, :, labels] += 30
    data = ImageSet("noise", images.to(torch.uint8), labels, ["red", "green", "blue"], hash="noise")
    return ImageStream(data, seed=0, flip=True, device=torch.device("cpu"))


def count_right(network: Discriminator, stream: ImageStream) -> float:
    """Share of the images whose class has the highest logit."""
    images, labels = stream.batch(0, 96)
    with torch.no_grad():
        return float((network.classify(images).argmax(dim=1) == labels).float().mean())


def create(spectral_norm: bool) -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(num_classes=3, width=4, spectral_norm=spectral_norm, group_size=4)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_it_learns_the_classes_and_leaves_the_head(spectral_norm: bool, stream: ImageStream) -> None:
    network, fabric = create(spectral_norm), create_fabric("cpu", "fp32")
    head = {name: value.clone() for name, value in network.head.state_dict().items()}
    with Interrupt() as interrupt:
        warm_up(network, stream, CONFIG, fabric, interrupt)
    assert count_right(network.eval(), stream) > 0.9
    found = network.head.state_dict()
    kept = [name for name in head if not name.endswith(("_u", "_v"))]  # a normalised weight's vectors move
    assert len(kept) == 2 and all(torch.equal(head[name], found[name]) for name in kept)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_classes_share_no_logit_afterwards(spectral_norm: bool, stream: ImageStream) -> None:
    network = create(spectral_norm)
    with Interrupt() as interrupt:
        warm_up(network, stream, CONFIG, create_fabric("cpu", "fp32"), interrupt)
    assert network.embedding.weight.mean(dim=0).abs().max() < 1e-6


def test_without_images_nothing_changes(stream: ImageStream) -> None:
    network = create(spectral_norm=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with Interrupt() as interrupt:
        warm_up(network, stream, dataclasses.replace(CONFIG, warm_up=0), create_fabric("cpu", "fp32"), interrupt)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_interrupt_ends_it_at_the_next_batch(stream: ImageStream) -> None:
    with Interrupt() as interrupt:
        interrupt.requested = True
        with pytest.raises(KeyboardInterrupt, match="interrupted at the warm-up; run the same command again"):
            warm_up(create(spectral_norm=False), stream, CONFIG, create_fabric("cpu", "fp32"), interrupt)
