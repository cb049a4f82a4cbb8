"""Generator and discriminator: sizes, exact folding, conditioning, spectral norm, every attention."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan.discriminator import Discriminator, DiscriminatorBlock, MinibatchDeviation
from gan.generator import Generator, GeneratorBlock
from gan.initialization import plain_state
from gan.resampling import conv_downsample, upsample_conv
from shared_attn import list_attentions
from shared_attn.complexity import count_multiply_adds, count_parameters

CLASSES = {32: 10, 64: 200, 128: 1000}


def random_like(network: nn.Module) -> nn.Module:
    """The network in float64 with random parameters, gates included."""
    network = network.double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(
    ("size", "generator", "discriminator"),
    [(32, 4_386_308, 1_075_586), (64, 13_387_396, 19_752_642), (128, 42_017_412, 39_448_258)],
)
def test_parameter_counts_are_the_papers(size: int, generator: int, discriminator: int) -> None:
    with torch.device("meta"):
        shape = {"image_size": size, "num_classes": CLASSES[size], "attention": "sagan", "spectral_norm": size == 32}
        assert count_parameters(Generator(**shape)) == generator
        assert count_parameters(Discriminator(**shape)) == discriminator


@pytest.mark.parametrize("form, parameters", [("memory", 32_769), ("projected", 163_841)])
def test_external_attention_adds_the_parameters_of_its_form(form: str, parameters: int) -> None:
    with torch.device("meta"):
        with_attention = Generator(attention="external", attention_options={"form": form}, spectral_norm=False)
        without = Generator(attention="none", spectral_norm=False)
        assert count_parameters(with_attention) - count_parameters(without) == parameters


@pytest.mark.parametrize("size, generator, discriminator", [(32, 1.705e9, 0.279e9), (64, 1.998e9, 1.114e9)])
def test_folding_saves_multiply_adds_against_the_plain_networks(
    size: int, generator: float, discriminator: float
) -> None:
    shape = {"image_size": size, "num_classes": CLASSES[size], "attention": "sagan", "spectral_norm": False}
    with torch.device("meta"), torch.no_grad():
        drawn = count_multiply_adds(Generator(**shape), torch.empty(1, 128), torch.empty(1, CLASSES[size]))
        image, label = torch.empty(1, 3, size, size), torch.empty(1, dtype=torch.long)
        judged = count_multiply_adds(Discriminator(**shape), image, label)
    assert drawn < 0.75 * generator
    assert judged < 0.75 * discriminator


def plain_upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


def plain_downsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


@pytest.mark.parametrize("size", [(2, 2), (6, 8)])
@pytest.mark.parametrize("folded, plain", [(upsample_conv, plain_upsample), (conv_downsample, plain_downsample)])
def test_folded_resampling_is_exact_with_gradients(folded, plain, size) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    y, expected = folded(x, weight, bias), plain(x, weight, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    seed = torch.randn_like(expected)
    inputs = (x, weight, bias)
    for mine, theirs in zip(
        torch.autograd.grad(y, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_generator_block_equals_the_papers_order_of_operations() -> None:
    block = random_like(GeneratorBlock(6, 4, num_classes=3))
    x, classes = torch.randn(5, 6, 4, 4, dtype=torch.float64), F.one_hot(torch.tensor([0, 1, 2, 2, 0]), 3).double()

    def norm(layer: nn.Module, h: Tensor) -> Tensor:
        mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, unbiased=False)
        gain, bias = classes @ layer.gain.weight.T, classes @ layer.bias.weight.T
        return (h - mean) / (variance + 1e-4).sqrt() * (1 + gain[:, :, None, None]) + bias[:, :, None, None]

    h = F.interpolate(F.relu(norm(block.norm1, x)), scale_factor=2)
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = F.conv2d(F.relu(norm(block.norm2, h)), block.conv2.weight, block.conv2.bias, padding=1)
    expected = h + F.conv2d(F.interpolate(x, scale_factor=2), block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, classes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("downsample, first, inplace", [(1, 1, 0), (1, 0, 0), (0, 0, 0), (1, 0, 1), (0, 0, 1)])
def test_discriminator_block_equals_the_papers_order_of_operations(downsample: int, first: int, inplace: int) -> None:
    channels = 3 if first else 6
    block = random_like(
        DiscriminatorBlock(channels, 6, downsample=bool(downsample), first=bool(first), inplace_relu=bool(inplace))
    )
    x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    # An in-place ReLU overwrites the block's input, so the skip sees what it left.
    h = overwritten = x.clone()
    if not first:
        h = F.relu(overwritten, inplace=bool(inplace))
    h = F.relu(F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    skip = overwritten
    if downsample:
        skip = F.avg_pool2d(F.conv2d(skip, block.skip.weight, block.skip.bias), 2)
        h = F.avg_pool2d(h, 2)
    torch.testing.assert_close(block(x), h + skip, rtol=0, atol=1e-12)


def test_discriminator_head_is_the_projection_of_summed_features() -> None:
    network = random_like(Discriminator(width=2, num_classes=4, spectral_norm=False, attention="none"))
    x, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 0, 1])
    h = x
    for block in network.blocks:
        h = block(h)
    h = F.relu(h).sum((2, 3))
    expected = h @ network.head.weight[0] + network.head.bias + (network.embedding.weight[labels] * h).sum(1)
    torch.testing.assert_close(network(x, labels), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("size, grid, channels", [(32, 16, 4), (64, 32, 2), (128, 64, 2)])
def test_attention_sits_where_the_paper_has_it(size: int, grid: int, channels: int) -> None:
    with torch.device("meta"):
        shape = {"image_size": size, "num_classes": 3, "width": 8, "spectral_norm": False}
        generator, discriminator = Generator(**shape), Discriminator(**shape)
        seen: list[tuple[int, ...]] = []
        for network in (generator, discriminator):
            network.attention.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        image = generator(torch.empty(2, 128), torch.empty(2, 3))
        discriminator(image, torch.empty(2, dtype=torch.long))
    assert image.shape == (2, 3, size, size)
    in_discriminator = 8 * (2 if size == 32 else 1)
    assert seen == [(2, 8 * channels, grid, grid), (2, in_discriminator, grid, grid)]


@pytest.mark.parametrize("attention", list_attentions())
@pytest.mark.parametrize("normalised", [True, False])
def test_every_attention_trains_in_both_networks(attention: str, normalised: bool) -> None:
    shape = {"num_classes": 3, "width": 8, "attention": attention, "attention_spectral_norm": normalised}
    generator, discriminator = Generator(**shape), Discriminator(**shape)
    z, labels = torch.randn(4, 128), torch.tensor([0, 1, 2, 0])
    # The gate starts at 0, where attention has no gradient: open it.
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if name.endswith("gate"):
                nn.init.constant_(parameter, 0.5)
    discriminator(generator(z, labels), labels).sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            if name != "attention.attention.query.bias" and not name.endswith("key_memory.bias"):  # these cancel
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_generator_follows_its_class_and_its_latent_vector() -> None:
    generator = Generator(width=4, num_classes=3).eval()
    z = torch.randn(1, 128).repeat(3, 1)
    with torch.no_grad():
        images = generator(z, torch.tensor([0, 1, 2]))
        blended = generator(z, torch.eye(3))
        other = generator(-z, torch.tensor([0, 1, 2]))
    assert (images[0] - images[1]).abs().mean() > 0.01 and (images[1] - images[2]).abs().mean() > 0.01
    assert (images - other).abs().mean() > 0.01
    torch.testing.assert_close(images, blended, rtol=0, atol=0)
    assert images.min() >= -1 and images.max() <= 1


def test_one_class_makes_unconditional_networks() -> None:
    generator, discriminator = Generator(width=2, num_classes=1), Discriminator(width=4, num_classes=1)
    labels = torch.zeros(3, dtype=torch.long)
    assert discriminator(generator(torch.randn(3, 128), labels), labels).isfinite().all()


def test_discriminator_treats_each_image_alone() -> None:
    discriminator = Discriminator(width=4).eval()
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    changed = x.clone()
    changed[2] += 1
    with torch.no_grad():
        difference = (discriminator(x, labels) - discriminator(changed, labels)).abs()
        other_class = (discriminator(x, labels) - discriminator(x, labels.roll(1))).abs()
    assert difference[2] > 1e-3 and difference[[0, 1, 3]].max() < 1e-5
    assert other_class.min() > 1e-5


def normalised_weights(network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": getattr(module, name).detach()
        for prefix, module in network.named_modules()
        for name in getattr(module, "parametrizations", ())
    }


def test_spectral_norm_covers_every_matrix_and_converges_to_one() -> None:
    torch.manual_seed(0)
    for network in (Generator(width=4), Discriminator(width=4)):
        free = [name for name, p in network.named_parameters() if p.ndim > 1 and "parametrizations" not in name]
        assert free == []
        for parameter in network.parameters():
            if parameter.ndim > 1:  # away from the orthogonal start, where every singular value is 1
                nn.init.normal_(parameter)
        network.train()
        for _ in range(300):
            weights = normalised_weights(network)  # a training access makes one power iteration
        for name, weight in weights.items():
            assert torch.linalg.svdvals(weight.flatten(1))[0] == pytest.approx(1, abs=2e-2), name


def test_one_power_iteration_a_training_forward_and_none_in_eval() -> None:
    discriminator = Discriminator(width=4, attention="sagan")
    nn.init.normal_(discriminator.blocks[0].conv1.parametrizations.weight.original)
    norm = discriminator.blocks[0].conv1.parametrizations.weight[0]
    weight = discriminator.blocks[0].conv1.parametrizations.weight.original.detach().flatten(1)
    v = norm._v.clone()
    u = F.normalize(weight @ v, dim=0)
    x, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    discriminator(x, labels)
    torch.testing.assert_close(norm._u, u)
    torch.testing.assert_close(norm._v, F.normalize(weight.T @ u, dim=0))
    before = norm._v.clone()
    discriminator.eval()(x, labels)
    assert torch.equal(before, norm._v)


def test_weights_start_orthogonal_and_biases_zero() -> None:
    generator = Generator(width=4, attention="sagan", spectral_norm=False)
    for name, parameter in generator.named_parameters():
        if name.endswith("bias") and parameter.ndim == 1 or name.endswith("gate"):
            assert parameter.abs().max() == 0, name
        elif parameter.ndim > 1:
            assert torch.linalg.svdvals(parameter.flatten(1)).sub(1).abs().max() < 1e-4, name


def test_attention_left_out_of_the_normalisation_keeps_its_own_start() -> None:
    discriminator = Discriminator(width=8, attention="external", attention_spectral_norm=False)
    attention = discriminator.attention.attention
    assert not hasattr(attention.value_memory, "parametrizations")
    assert float(attention.value_memory.weight.detach().std()) == pytest.approx((64 / torch.e) ** 0.5, rel=0.1)


def test_autocast_does_not_reach_the_spectral_norm() -> None:
    discriminator = Discriminator(width=4)
    x, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    twin = copy.deepcopy(discriminator)
    discriminator(x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = twin(x, labels)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16())
    for mine, theirs in zip(discriminator.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_plain_state_is_the_same_network_and_leaves_copies_alone() -> None:
    generator = Generator(width=4).eval()
    other = copy.deepcopy(generator)
    plain = Generator(width=4, spectral_norm=False).eval()
    plain.load_state_dict(plain_state(generator))
    z, labels = torch.randn(3, 128), torch.tensor([0, 5, 9])
    with torch.no_grad():
        assert torch.equal(plain(z, labels), generator(z, labels))
        assert torch.equal(other(z, labels), generator(z, labels))


def test_channels_of_the_stages_can_be_given_in_widths() -> None:
    generator = Generator(width=2, multiples=(6, 4, 2, 1))
    discriminator = Discriminator(width=2, multiples=(1, 3, 4, 5))
    assert [block.conv2.out_channels for block in generator.blocks] == [8, 4, 2]
    assert generator.linear.out_features == 12 * 16 and generator.conv.in_channels == 2
    assert [block.conv1.out_channels for block in discriminator.blocks] == [2, 6, 8, 10]
    assert discriminator.head.in_features == discriminator.embedding.embedding_dim == 10
    images = generator(torch.randn(2, 128), torch.tensor([3, 4]))
    assert images.shape == (2, 3, 32, 32) and discriminator(images, torch.tensor([3, 4])).shape == (2,)
    assert count_parameters(Generator(width=32, multiples=(8,) * 4)) == count_parameters(Generator())
    for multiples in ((8, 8, 8), (8, 8, 8, 8, 8), (8, 8, 0, 8)):
        for network in (Generator, Discriminator):
            with pytest.raises(ValueError, match=f"multiples {' '.join(map(str, multiples))}: expected 4 positive"):
                network(multiples=multiples)


def test_the_discriminator_halves_images_until_its_last_grid() -> None:
    papers = {32: 8, 64: 4, 128: 4}
    for size, paper in papers.items():
        for given, side in ((0, paper), (paper, paper), (4, 4), (16, 16)):
            discriminator = Discriminator(image_size=size, width=2, grid=given)
            x = torch.randn(2, 3, size, size)
            assert discriminator(x, torch.tensor([0, 1])).shape == (2,)
            for block in discriminator.blocks:
                x = block(x)
            assert x.shape[2:] == (side, side)
    for given in (1, 5, 32, -4):
        with pytest.raises(ValueError, match=f"grid {given}: expected one of 16, 8, 4, 2 at 32 pixels"):
            Discriminator(grid=given)


def test_an_unknown_size_or_attention_is_refused() -> None:
    for network in (Generator, Discriminator):
        with pytest.raises(ValueError, match="image_size 48: expected one of 32, 64, 128"):
            network(image_size=48)
        with pytest.raises(ValueError, match="unknown attention 'extenal'"):
            network(attention="extenal")


def test_the_deviation_is_that_of_each_group() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 3, 3)
    deviation = MinibatchDeviation(5, group_size=4)
    for first in (0, 4):
        group = x[first : first + 4]
        expected = group.std(dim=0, correction=0).mean()
        added = deviation(x)[first : first + 4] - group
        torch.testing.assert_close(added, (expected * deviation.weight)[None, :, None, None].expand_as(group))
    smaller = (x[:3].std(dim=0, correction=0).mean() * deviation.weight)[None, :, None, None]
    torch.testing.assert_close(deviation(x[:3]) - x[:3], smaller.expand(3, -1, 3, 3))
    alike = x[:1].expand(4, -1, -1, -1)
    assert (deviation(alike) - alike).abs().max() < 1e-3, "images that are all alike differ by nothing"


def test_a_discriminator_of_groups_sees_how_much_their_images_differ() -> None:
    """The other images of a group count, those of other groups do not; a penalty can be differentiated through it."""
    torch.manual_seed(0)
    discriminator = Discriminator(width=4, spectral_norm=False, group_size=4)
    images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
    changed = images.clone()
    changed[1:4] = images[:1]
    before, after = discriminator(images, labels).detach(), discriminator(changed, labels).detach()
    assert (before[0] - after[0]).abs() > 1e-3
    torch.testing.assert_close(before[4:], after[4:])
    images.requires_grad_(True)
    (slope,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert discriminator.deviation.weight.grad is not None and discriminator.deviation.weight.grad.isfinite().all()
    with pytest.raises(ValueError, match="6 images: expected a multiple of the groups' 4"):
        discriminator(images[:6], labels[:6])
