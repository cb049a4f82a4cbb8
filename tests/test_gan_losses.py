"""Losses and regularisations, differentiable and adaptive augmentation, and the averaged generator."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan.adaptation import Adaptation
from gan.augmentation import POLICIES, augment, cutout, flip, geometry, translation
from gan.averaging import estimate_statistics, update_average, warm_decay
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.losses import LOSSES, consistency, gradient_penalty, hinge_discriminator, lecam
from gan.presets import GanConfig
from gan.sampling import finish_generator
from gan.steps import Steps


def test_hinge_values_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert float(hinge_discriminator(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert float(LOSSES["hinge"][1](fake, real)) == pytest.approx(-1 / 3)


def test_logistic_losses_are_cross_entropies() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    ones, zeros = torch.ones(3), torch.zeros(3)
    entropy = F.binary_cross_entropy_with_logits
    discriminator, generator = LOSSES["logistic"]
    assert float(discriminator(real, fake)) == pytest.approx(float(entropy(real, ones) + entropy(fake, zeros)))
    assert float(generator(fake, real)) == pytest.approx(float(entropy(fake, ones)))
    discriminator, generator = LOSSES["relativistic"]
    assert float(discriminator(real, fake)) == pytest.approx(float(entropy(real - fake, ones)))
    assert float(generator(fake, real)) == pytest.approx(float(entropy(real - fake, zeros)))


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_pulls_the_two_sides_apart_and_the_generator_back(name: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator, generator = LOSSES[name]
    towards_real, towards_fake = torch.autograd.grad(discriminator(real, fake), (real, fake))
    assert (towards_real < 0).all() and (towards_fake > 0).all()
    (back,) = torch.autograd.grad(generator(fake, real.detach()), fake)
    assert (back < 0).all()


def test_gradient_penalty_of_a_known_slope() -> None:
    slope = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = (images * slope).sum((1, 2, 3)) + 7
    penalty = gradient_penalty(logits, images)
    assert float(penalty.detach()) == pytest.approx(float(slope.detach().square().sum() / 2), rel=1e-6)
    (gradient,) = torch.autograd.grad(penalty, slope)  # it trains the discriminator
    torch.testing.assert_close(gradient, slope.detach(), rtol=1e-6, atol=1e-6)


def test_lecam_and_consistency_by_hand() -> None:
    real, fake = torch.tensor([1.0, -3.0]), torch.tensor([0.5, -1.0])
    # max(0, 1 + 1)^2, max(0, -3 + 1)^2; max(0, 0.5 - 0.5)^2, max(0, 0.5 + 1)^2
    expected = (4 + 0) / 2 + (0 + 2.25) / 2
    assert float(lecam(real, fake, torch.tensor(0.5), torch.tensor(-1.0))) == pytest.approx(expected)
    assert float(consistency(real, fake)) == pytest.approx((0.25 + 4) / 2)


class Recorder:
    """A fabric that differentiates plainly."""

    device = torch.device("cpu")

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class NoStep:
    """An optimizer that leaves the weights as they are."""

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


def bare_steps(**changes: object) -> Steps:
    torch.manual_seed(0)
    shape = {"width": 4, "num_classes": 3, "attention": "none", "spectral_norm": False}
    networks = {"generator": Generator(**shape), "discriminator": Discriminator(**shape)}
    adaptation = Adaptation(probability=1, target=0, images=1)
    config = GanConfig(**changes)  # type: ignore[arg-type]
    optimizers = dict.fromkeys(networks, NoStep())
    return Steps(config, Recorder(), networks, optimizers, adaptation, num_classes=3, latent_dim=128)


def test_penalties_of_a_step_are_those_of_each_side_alone() -> None:
    """One backward pass over the batch gives R1 on the real and R2 on the generated half, each with its weight."""
    steps = bare_steps(r1_gamma=0.3, r2_gamma=0.7, consistency=1.0)
    images, labels = torch.randn(12, 3, 32, 32).requires_grad_(True), torch.tensor([0, 1, 2] * 4)
    logits = steps.discriminator(images, labels)  # 3 real, 3 generated, and the changed ones of each
    penalty = steps._penalty(logits[:3], logits[3:6], images)
    expected = 0.0
    for gamma, part in ((0.3, slice(0, 3)), (0.7, slice(3, 6))):
        side = images[part].detach().requires_grad_(True)
        expected += gamma * float(gradient_penalty(steps.discriminator(side, labels[part]), side).detach())
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_lazy_penalty_is_scaled_to_the_same_sum() -> None:
    gradients = []
    for changes in ({"penalty_every": 1}, {"penalty_every": 4}, {"r1_gamma": 0.0, "r2_gamma": 0.0}):
        steps = bare_steps(**{"r1_gamma": 0.5, "r2_gamma": 0.5, **changes})
        torch.manual_seed(1)
        real, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        steps.train_discriminator(real, labels, penalise=bool(steps.config.r1_gamma))
        gradients.append(torch.cat([p.grad.flatten() for p in steps.discriminator.parameters() if p.grad is not None]))
    every, fourth, none = gradients
    torch.testing.assert_close(fourth - none, 4 * (every - none), rtol=1e-3, atol=1e-5)


def test_a_relativistic_step_pairs_images_of_one_class() -> None:
    steps = bare_steps(loss="relativistic")
    labels = torch.tensor([2, 0, 1, 1])
    _, asked = steps._generate(labels, learns=False)
    assert torch.equal(asked, labels)
    torch.manual_seed(1)
    _, asked = bare_steps(loss="hinge")._generate(torch.zeros(64, dtype=torch.long), learns=False)
    assert set(asked.tolist()) == {0, 1, 2}


def test_a_pair_is_right_by_its_difference_and_an_image_by_its_sign() -> None:
    """Logits shifted far up: every generated image is above zero, but the pairs are told apart as before."""
    shares = {}
    for loss in ("relativistic", "hinge"):
        steps = bare_steps(loss=loss)
        with torch.no_grad():
            steps.discriminator.head.weight.zero_()
            steps.discriminator.embedding.weight.zero_()
            steps.discriminator.embedding.weight[2] = 1e-3  # h is not negative: real images of class 2 stand above
            steps.discriminator.head.bias.fill_(1e3)
        real, labels = torch.rand(8, 3, 32, 32), torch.full((8,), 2)
        if loss == "relativistic":
            h = steps.discriminator(real, labels)
            torch.manual_seed(5)
            expected = float((h > steps.discriminator(*steps._generate(labels, learns=False))).float().mean())
        torch.manual_seed(5)
        shares[loss] = float(steps.train_discriminator(real, labels, penalise=False)[3])
    assert shares["hinge"] == 0.5
    assert shares["relativistic"] == expected and expected != 0.5


def test_a_generator_step_leaves_the_discriminator_without_gradients() -> None:
    for loss in LOSSES:
        steps = bare_steps(loss=loss)
        steps.train_generator(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
        assert all(p.grad is None for p in steps.discriminator.parameters())
        assert all(p.grad is not None for p in steps.generator.parameters())


def test_adaptive_strength_rises_with_a_sure_discriminator_and_stays_within_bounds() -> None:
    adaptation = Adaptation(probability=0.5, target=0.6, images=100)
    sure, unsure = torch.tensor([1.0] * 9 + [-1.0]), torch.tensor([1.0] * 7 + [-1.0] * 3)  # mean signs 0.8 and 0.4
    adaptation.update(sure, -sure, sure)
    assert float(adaptation.probability) == pytest.approx(0.6)
    for _ in range(2):
        adaptation.update(sure, sure, unsure)
    assert float(adaptation.probability) == pytest.approx(0.4)
    for _ in range(20):
        adaptation.update(sure, sure, sure)
    assert float(adaptation.probability) == 1
    fixed = Adaptation(probability=0.5, target=0, images=100)
    fixed.update(sure, sure, sure)
    assert float(fixed.probability) == 0.5
    assert float(fixed.real_level) == pytest.approx(0.01 * 0.8)


def test_augmentation_with_a_probability_changes_that_part_of_the_images() -> None:
    images = torch.rand(512, 3, 8, 8)
    changed = augment(images, ["color"], torch.tensor(0.25))
    same = (changed == images).flatten(1).all(1)
    assert 0.65 < float(same.float().mean()) < 0.85
    assert torch.equal(augment(images, ["color", "geometry"], 0.0), images)


def test_flips_mirror_and_geometry_turns_about_the_middle() -> None:
    images = torch.rand(32, 3, 8, 8)
    flipped = flip(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~kept) and 4 < int(mirrored.sum()) < 28
    # A radially symmetric disc with a gentle edge is only scaled: its middle stays bright, its level about the same.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    disc = torch.exp(-4 * (x**2 + y**2)).expand(16, 3, 33, 33)
    turned = geometry(disc)
    assert (turned[:, :, 16, 16] > 0.95).all() and (turned[:, :, 0, 0] < 0.8).all()
    # Any angle: a mark on the right comes out all around.
    mark = torch.zeros(256, 1, 33, 33)
    mark[:, :, 14:19, 22:27] = 1
    turned = geometry(mark)
    places = torch.stack([(turned * x).sum((1, 2, 3)), (turned * y).sum((1, 2, 3))])
    assert (places.mean(1).abs() < 0.25 * places.norm(dim=0).mean()).all()


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
    assert len({tuple(image.flatten().tolist()) for image in out}) > (1 if policy == "flip" else 4)
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


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_reused_images_give_the_generator_its_gradient_at_the_same_latent_vectors(loss: str) -> None:
    """As if the same z were drawn again for a generator that stands still meanwhile, at one forward pass less."""
    real, labels, gradients = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), []
    for reuse in (False, True):
        steps = bare_steps(loss=loss, reuse_generated=reuse)
        calls: list[bool] = []
        steps.generator.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        torch.manual_seed(1)
        steps.train_discriminator(real, labels, penalise=False)
        assert all(p.grad is None for p in steps.generator.parameters()), "the discriminator's loss stops at the images"
        if not reuse:
            torch.manual_seed(1)
        steps.train_generator(real, labels)
        gradients.append([p.grad.clone() for p in steps.generator.parameters() if p.grad is not None])
        assert calls == ([True] if reuse else [False, True])
        assert steps._generated is None
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    for apart, reused in zip(*gradients, strict=True):
        torch.testing.assert_close(apart, reused)
