"""StudioGAN's weights in this project's networks: held against a naive float64 reading of the paper, and its own code.

STUDIOGAN_CHECKOUT, the folder of a checkout of POSTECH-CVLab/PyTorch-StudioGAN, lets the original itself be run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gan
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.original import load_original
from gan.reference import list_references, load_reference, studiogan_names

CLASSES, WIDTH = 3, 8
ATTENTION_PLACE = {"generator": {32: 2, 64: 3}, "discriminator": {32: 1, 64: 1}}  # of the attention among the blocks
GENERATOR = {32: [4, 4, 4, 4], 64: [16, 8, 4, 2, 1]}  # channels over the width
DISCRIMINATOR = {32: [2, 2, 2, 2], 64: [1, 2, 4, 8, 16]}
DOWN = {32: [1, 1, 0, 0], 64: [1, 1, 1, 1, 0]}


class Maker:
    """Random weights of layers by StudioGAN's names, with the vectors of its spectral norm where wanted."""

    def __init__(self, *, normalised: bool) -> None:
        self.normalised = normalised
        self.state: dict[str, Tensor] = {}

    def layer(self, name: str, *shape: int, bias: bool = True) -> None:
        weight = torch.randn(shape)
        weight = (1.4 if self.normalised else 0.6) * weight / weight[0].numel() ** 0.5  # tanh must not saturate
        if self.normalised:
            u, v = torch.randn(shape[0]), torch.randn(weight[0].numel())
            for _ in range(3):  # not converged: sigma is what u and v say
                v = F.normalize(weight.flatten(1).T @ u, dim=0)
                u = F.normalize(weight.flatten(1) @ v, dim=0)
            self.state |= {f"{name}.weight_orig": weight, f"{name}.weight_u": u, f"{name}.weight_v": v}
        else:
            self.state[f"{name}.weight"] = weight
        if bias:
            self.state[f"{name}.bias"] = torch.randn(shape[0]) * 0.2

    def norm(self, name: str, channels: int, *, affine: bool = False) -> None:
        self.state[f"{name}.running_mean"] = torch.randn(channels) * 0.3
        self.state[f"{name}.running_var"] = 0.3 + torch.rand(channels)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        if affine:
            self.state |= {f"{name}.weight": 1 + 0.3 * torch.randn(channels), f"{name}.bias": torch.randn(channels)}

    def attention(self, name: str, channels: int) -> None:
        for part, outputs in (("theta", channels // 8), ("phi", channels // 8), ("g", channels // 2)):
            self.layer(f"{name}.conv1x1_{part}", outputs, channels, 1, 1, bias=False)
        self.layer(f"{name}.conv1x1_attn", channels, channels // 2, 1, 1, bias=False)
        self.state[f"{name}.sigma"] = torch.tensor([0.7])


def generator_state(size: int, *, normalised: bool) -> dict[str, Tensor]:
    made, place = Maker(normalised=normalised), 0
    channels = [WIDTH * multiple for multiple in GENERATOR[size]]
    made.layer("linear0", channels[0] * 16, 128)
    for number, (c_in, c_out) in enumerate(zip(channels, channels[1:], strict=False), 1):
        block = f"blocks.{place}.0"
        for norm, width in (("bn1", c_in), ("bn2", c_out)):
            made.norm(f"{block}.{norm}.bn", width)
            made.layer(f"{block}.{norm}.gain", width, CLASSES, bias=False)
            made.layer(f"{block}.{norm}.bias", width, CLASSES, bias=False)
        made.layer(f"{block}.conv2d0", c_out, c_in, 1, 1)
        made.layer(f"{block}.conv2d1", c_out, c_in, 3, 3)
        made.layer(f"{block}.conv2d2", c_out, c_out, 3, 3)
        place += 1
        if number == ATTENTION_PLACE["generator"][size]:
            made.attention(f"blocks.{place}.0", c_out)
            place += 1
    made.norm("bn4", channels[-1], affine=True)
    made.layer("conv2d5", 3, channels[-1], 3, 3)
    return made.state


def discriminator_state(size: int, *, normalised: bool) -> dict[str, Tensor]:
    made, place, c_in = Maker(normalised=normalised), 0, 3
    for number, (multiple, down) in enumerate(zip(DISCRIMINATOR[size], DOWN[size], strict=True), 1):
        c_out, block = WIDTH * multiple, f"blocks.{place}.0"
        if down or c_in != c_out:
            made.layer(f"{block}.conv2d0", c_out, c_in, 1, 1)
        made.layer(f"{block}.conv2d1", c_out, c_in, 3, 3)
        made.layer(f"{block}.conv2d2", c_out, c_out, 3, 3)
        place, c_in = place + 1, c_out
        if number == ATTENTION_PLACE["discriminator"][size]:
            made.attention(f"blocks.{place}.0", c_out)
            place += 1
    made.layer("linear1", 1, c_in)
    made.layer("embedding", CLASSES, c_in, bias=False)
    return made.state


class Naive:
    """The networks of the specification in eval mode, one plain operation after the other, in float64."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def weight(self, name: str) -> Tensor:
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        weight = self.state[f"{name}.weight_orig"]
        return weight / (self.state[f"{name}.weight_u"] @ weight.flatten(1) @ self.state[f"{name}.weight_v"])

    def convolve(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[2] // 2)

    def normalise(self, name: str, x: Tensor) -> Tensor:
        mean, variance = (self.state[f"{name}.running_{part}"][:, None, None] for part in ("mean", "var"))
        return (x - mean) / (variance + 1e-4).sqrt()

    def conditional(self, name: str, x: Tensor, classes: Tensor) -> Tensor:
        gain, bias = (classes @ self.weight(f"{name}.{part}").T for part in ("gain", "bias"))
        return self.normalise(f"{name}.bn", x) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]

    def attend(self, name: str, x: Tensor) -> Tensor:
        theta = self.convolve(f"{name}.conv1x1_theta", x).flatten(2)
        phi = F.max_pool2d(self.convolve(f"{name}.conv1x1_phi", x), 2).flatten(2)
        g = F.max_pool2d(self.convolve(f"{name}.conv1x1_g", x), 2).flatten(2)
        attention = (theta.transpose(1, 2) @ phi).softmax(-1)
        o = (g @ attention.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return x + self.state[f"{name}.sigma"] * self.convolve(f"{name}.conv1x1_attn", o)

    def generate(self, z: Tensor, labels: Tensor) -> Tensor:
        classes = F.one_hot(labels, CLASSES).double()
        x = (z.double() @ self.weight("linear0").T + self.state["linear0.bias"]).view(len(z), -1, 4, 4)
        for place in range(len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})):
            name = f"blocks.{place}.0"
            if f"{name}.sigma" in self.state:
                x = self.attend(name, x)
                continue
            h = F.interpolate(F.relu(self.conditional(f"{name}.bn1", x, classes)), scale_factor=2)
            h = F.relu(self.conditional(f"{name}.bn2", self.convolve(f"{name}.conv2d1", h), classes))
            skip = self.convolve(f"{name}.conv2d0", F.interpolate(x, scale_factor=2))
            x = self.convolve(f"{name}.conv2d2", h) + skip
        x = self.normalise("bn4", x) * self.state["bn4.weight"][:, None, None] + self.state["bn4.bias"][:, None, None]
        return self.convolve("conv2d5", F.relu(x)).tanh()

    def judge(self, x: Tensor, labels: Tensor, size: int) -> Tensor:
        x, place = x.double(), 0
        for number, down in enumerate(DOWN[size]):
            name = f"blocks.{place}.0"
            if number:
                x = F.relu(x)  # the activation is done in place, so the skip sees it too
            h = self.convolve(f"{name}.conv2d2", F.relu(self.convolve(f"{name}.conv2d1", x)))
            skip = self.convolve(f"{name}.conv2d0", x) if f"{name}.conv2d0.bias" in self.state else x
            x, place = F.avg_pool2d(h + skip, 2) if down else h + skip, place + 1
            if number + 1 == ATTENTION_PLACE["discriminator"][size]:
                x, place = self.attend(f"blocks.{place}.0", x), place + 1
        h = F.relu(x).sum((2, 3))
        logits = h @ self.weight("linear1")[0] + self.state["linear1.bias"]
        return logits + (self.weight("embedding")[labels] * h).sum(1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("normalised", [True, False])
def test_generator_computes_what_the_original_does(size: int, normalised: bool) -> None:
    state = generator_state(size, normalised=normalised)
    network = load_reference("studiogan.generator", state)
    assert isinstance(network, Generator) and not network.training
    assert (network.image_size, network.num_classes, network.latent_dim) == (size, CLASSES, 128)
    z, labels = torch.randn(4, 128), torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        assert relative(network(z, labels), Naive(state).generate(z, labels)) < 1e-4


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("normalised", [True, False])
def test_discriminator_computes_what_the_original_does(size: int, normalised: bool) -> None:
    state = discriminator_state(size, normalised=normalised)
    network = load_reference("studiogan.discriminator", state)
    assert isinstance(network, Discriminator) and not network.training
    x, labels = torch.rand(4, 3, size, size) * 2 - 1, torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        expected = Naive(state).judge(x, labels, size)
        assert relative(network(x, labels), expected) < 1e-4
        plain = load_reference("studiogan.discriminator", state, inplace_relu=False)
        assert relative(plain(x, labels), expected) > 1e-2, "the quirk matters"


def test_loaded_weights_are_copies_that_train_on() -> None:
    state = discriminator_state(32, normalised=True)
    network = gan.load_reference("studiogan.discriminator", state).train()
    before = {name: value.clone() for name, value in state.items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_without_attention_and_from_arrays_the_network_is_sngans() -> None:
    state = {
        name if ".3.0." not in name else name.replace(".3.0.", ".2.0."): value
        for name, value in generator_state(32, normalised=True).items()
        if ".2.0." not in name  # where the attention was
    }
    network = load_reference("studiogan.generator", {name: value.numpy() for name, value in state.items()})
    assert isinstance(network.attention, nn.Identity)
    z, labels = torch.randn(2, 128), torch.tensor([0, 1])
    with torch.no_grad():
        assert relative(network(z, labels), Naive(state).generate(z, labels)) < 1e-4


def test_what_does_not_fit_is_refused_by_name() -> None:
    state = discriminator_state(32, normalised=True)
    with pytest.raises(ValueError, match="unknown source 'studiogan.big'; there are: studiogan.generator"):
        load_reference("studiogan.big", state)
    with pytest.raises(ValueError, match="missing linear1.bias$"):
        load_reference("studiogan.discriminator", {k: v for k, v in state.items() if k != "linear1.bias"})
    with pytest.raises(ValueError, match="unexpected linear9.bias$"):
        load_reference("studiogan.discriminator", {**state, "linear9.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"blocks.0.0.conv2d1.bias has shape \(16,\), expected \(32,\)"):
        load_reference("studiogan.discriminator", state, width=16)
    with pytest.raises(ValueError, match="0 residual blocks, expected 3 .32 px., 4 .64 px., 5 .128 px."):
        load_reference("studiogan.generator", {})
    with pytest.raises(ValueError, match="has no option 'depth'"):
        load_reference("studiogan.discriminator", state, depth=3)
    with pytest.raises(ValueError, match="not all are tensors"):
        load_reference("studiogan.discriminator", {**state, "linear1.bias": "zero"})
    with pytest.raises(ValueError, match="PyTorch-StudioGAN has no attention.attention.key_memory.weight"):
        studiogan_names(Generator(width=2, attention="external", spectral_norm=False))
    assert list_references() == ["studiogan.generator", "studiogan.discriminator"]


@pytest.mark.parametrize("size", [32, 64])
def test_the_original_itself_agrees(size: int) -> None:
    """Forward in eval mode of both, and parameters counted, with the checkout's own code."""
    checkout = os.environ.get("STUDIOGAN_CHECKOUT")
    if checkout is None:
        pytest.skip("no original to run: STUDIOGAN_CHECKOUT names no checkout of PyTorch-StudioGAN")
    torch.manual_seed(0)
    shape = {"image_size": size, "num_classes": CLASSES, "width": 16, "attention": "sagan"}
    mine = Generator(**shape), Discriminator(**shape, inplace_relu=True)
    for network in mine:
        nn.init.constant_(network.attention.gate, 0.8)
    theirs = load_original(Path(checkout), *mine)
    for network, original in zip(mine, theirs, strict=True):
        for module in original.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.3, 1.3)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == sum(parameter.numel() for parameter in original.parameters())
    z, labels = torch.randn(8, 128), torch.randint(CLASSES, (8,))
    x = torch.rand(8, 3, size, size) * 2 - 1
    with torch.no_grad():
        images = theirs[0].eval()(z, labels)
        logits = theirs[1].eval()(x, labels)["adv_output"]
        generator = load_reference("studiogan.generator", theirs[0].state_dict())
        discriminator = load_reference("studiogan.discriminator", theirs[1].state_dict())
        differences = relative(generator(z, labels), images), relative(discriminator(x, labels), logits)
    print(f"{size} px: images {differences[0]:.1e}, logits {differences[1]:.1e}")
    assert max(differences) < 1e-4
