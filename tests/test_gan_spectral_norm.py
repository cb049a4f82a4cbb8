"""This package's spectral norm against torch's own: numbers, gradients of two orders, state, copies, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.spectral_norm import SpectralNorm, normalise

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "convolution": lambda: nn.Conv2d(3, 6, 3),
    "embedding": lambda: nn.Embedding(4, 9),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The same layer twice, normalised here and by torch, from the same random numbers."""
    torch.manual_seed(3)
    ours = LAYERS[name]().double()
    nn.init.normal_(ours.weight)
    theirs = copy.deepcopy(ours)
    torch.manual_seed(4)
    normalise(ours)
    torch.manual_seed(4)
    parametrizations.spectral_norm(theirs, "weight")
    for layer in (ours, theirs):
        nn.init.normal_(layer.parametrizations.weight.original, generator=torch.Generator().manual_seed(5))
    return ours, theirs


@pytest.mark.parametrize("name", LAYERS)
def test_values_state_and_gradients_are_torchs(name: str) -> None:
    ours, theirs = pair(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, True, False, True):
        ours.train(training), theirs.train(training)
        mine, expected = ours.weight, theirs.weight
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
        seed = torch.randn_like(expected)
        found = torch.autograd.grad(mine, ours.parametrizations.weight.original, seed)[0]
        other = torch.autograd.grad(expected, theirs.parametrizations.weight.original, seed)[0]
        torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-10)
    for (place, mine), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12, msg=place)


def test_gradients_of_both_orders_are_those_of_finite_differences() -> None:
    norm = SpectralNorm(torch.randn(4, 6, dtype=torch.float64)).eval()  # u and v are constants, as in training
    weight = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, weight)
    assert torch.autograd.gradgradcheck(norm, weight)


def test_two_forwards_before_one_backward() -> None:
    layer, _ = pair("linear")
    x = torch.randn(2, 7, dtype=torch.float64)
    first = layer(x).square().sum()
    (first - layer(-x).square().sum()).backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_copies_and_states_go_on_as_their_original() -> None:
    layer, _ = pair("convolution")
    layer.weight.sum().backward()
    twin, other = copy.deepcopy(layer), LAYERS["convolution"]().double()
    normalise(other)
    other.load_state_dict(layer.state_dict())
    for _ in range(2):
        expected = layer.weight
        assert torch.equal(twin.weight, expected) and torch.equal(other.weight, expected)
    assert twin.parametrizations.weight[0]._u.data_ptr() != layer.parametrizations.weight[0]._u.data_ptr()


@pytest.mark.slow
def test_both_networks_compile_to_one_graph_of_the_same_numbers() -> None:
    shape = {"width": 8, "num_classes": 3, "attention": "sagan"}
    networks = Generator(**shape), Discriminator(**shape)
    for network in networks:
        nn.init.constant_(network.attention.gate, 0.5)
    twins = copy.deepcopy(networks)
    for twin in twins:
        twin.compile(fullgraph=True, backend="aot_eager")
    z, labels = torch.randn(4, 128), torch.tensor([0, 1, 2, 1])

    def run(generator: nn.Module, discriminator: nn.Module) -> list[Tensor]:
        logits = discriminator(generator(z, labels), labels)
        logits.sum().backward()
        parameters = [*generator.parameters(), *discriminator.parameters()]
        return [logits.detach(), *(p.grad for p in parameters if p.ndim > 1)]  # a bias before a norm has none

    for mine, expected in zip(run(*twins), run(*networks), strict=True):
        assert float((mine - expected).norm() / expected.norm()) < 1e-3
