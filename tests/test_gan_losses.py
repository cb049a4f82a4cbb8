"""Hinge loss, differentiable augmentation, and the averaged generator."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan.augmentation import POLICIES, augment, cutout, translation
from gan.averaging import estimate_statistics, update_average, warm_decay
from gan.generator import Generator
from gan.losses import hinge_discriminator, hinge_generator
from gan.sampling import finish_generator


def test_hinge_values_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert float(hinge_discriminator(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert float(hinge_generator(fake)) == pytest.approx(-1 / 3)


def test_hinge_gradients_stop_beyond_the_margin() -> None:
    real, fake = torch.tensor([1.5, 0.0], requires_grad=True), torch.tensor([-1.5, 0.0], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad.tolist() == [0, -0.5] and fake.grad.tolist() == [0, 0.5]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_augmentation_is_differentiable_and_drawn_for_each_image(policy: str) -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    many = x.repeat(16, 1, 1, 1)
    out = augment(many, [policy])
    assert len({tuple(image.flatten().tolist()) for image in out}) > 4
    assert torch.equal(many, x.expand_as(many))  # the input is not written into

    def fixed(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return augment(images, [policy])

    small = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fixed, small)
    assert not torch.equal(fixed(small), small)


def test_no_policy_is_the_identity_and_all_keep_the_layout() -> None:
    x = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert augment(x, ()) is x
    out = augment(x, POLICIES)
    assert out.shape == x.shape and out.is_contiguous(memory_format=torch.channels_last)


def test_translation_shifts_by_at_most_an_eighth_and_fills_with_zeros() -> None:
    x = torch.rand(64, 3, 16, 16) + 1
    moved = translation(x)
    shifts = set()
    for before, after in zip(x, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(after, F.pad(before, (2, 2, 2, 2))[:, 2 + dy : 18 + dy, 2 + dx : 18 + dx])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 15


def test_cutout_removes_one_square_of_half_the_size() -> None:
    kept = cutout(torch.ones(256, 3, 8, 8))
    assert set(kept.unique().tolist()) == {0, 1}
    holes = (kept == 0).all(dim=1)  # (B, 8, 8)
    assert torch.equal(holes, (kept == 0).any(dim=1))
    sides_h, sides_w = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), sides_h * sides_w)
    assert int(sides_h.max()) == 4 and int(sides_h.min()) == 2  # cut off by the border down to half


def test_average_moves_parameters_and_copies_buffers() -> None:
    network = Generator(width=2, num_classes=2)
    average = copy.deepcopy(network)
    before = [parameter.detach().clone() for parameter in average.parameters()]
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(torch.randn(4, 128), torch.tensor([0, 1, 0, 1]))  # moves u, v and the running statistics
    update_average(average, network, 0.9)
    for old, mine, theirs in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * old + 0.1 * theirs)
    names = [name for name, _ in average.named_buffers()]
    assert any(name.endswith("_u") for name in names)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    for name, buffer in average.named_buffers():
        if name.endswith(("_u", "_v")):
            assert buffer.norm() == pytest.approx(1, abs=1e-5)


def test_decay_zero_keeps_the_network_itself_and_warms_up_from_there() -> None:
    network, average = nn.Linear(2, 2), nn.Linear(2, 2)
    update_average(average, network, 0.0)
    assert torch.equal(average.weight, network.weight)
    decays = [warm_decay(0.999, step) for step in (0, 10, 1000, 10**6)]
    assert decays[0] == pytest.approx(0.1) and decays == sorted(decays) and decays[-1] == 0.999


def test_estimated_statistics_are_the_means_over_the_batches() -> None:
    generator = Generator(width=2, num_classes=2)
    z, labels = torch.randn(3, 8, 128), torch.randint(2, (3, 8))
    vectors = {name: buffer.clone() for name, buffer in generator.named_buffers() if name.endswith("_u")}
    estimate_statistics(generator, zip(z, labels, strict=True))
    first = generator.blocks[0].norm1.norm
    with torch.no_grad():
        inputs = [generator.linear(part).view(8, -1, 4, 4) for part in z]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(first.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.running_var, variance, rtol=1e-4, atol=1e-6)
    assert not generator.training and not first.training and first.momentum == 0.1
    for name, buffer in generator.named_buffers():
        if name.endswith("_u"):
            assert torch.equal(buffer, vectors[name])


def test_finishing_a_generator_leaves_the_average_as_it_was() -> None:
    model = {"width": 2, "num_classes": 2}
    average = Generator(**model)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    finished = finish_generator(average, model, seed=0)
    assert not any("parametrizations" in name for name in finished.state_dict())
    for name, value in average.state_dict().items():
        assert torch.equal(value, before[name])
    again = finish_generator(average, model, seed=0)
    for mine, theirs in zip(finished.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    # What it draws in eval mode looks like what the average draws from a batch's own statistics.
    z, labels = torch.randn(256, 128), torch.randint(2, (256,))
    with torch.no_grad():
        by_batch, by_estimate = average.train()(z, labels), finished(z, labels)
    assert (by_batch - by_estimate).abs().mean() < 0.1 * by_batch.abs().mean()
