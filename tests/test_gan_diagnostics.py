"""Collapse, saturation and growing weights are seen, and told once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gan.diagnostics import PATIENCE, SaturationWatch, collapse_warning, spectra
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.judging.distances import effective_rank


def test_saturation_is_told_once_and_only_when_it_lasts() -> None:
    watch = SaturationWatch()
    assert all(watch.update(1.0, step) is None for step in range(PATIENCE - 1))
    assert watch.update(0.9, 0) is None  # begins anew
    told = [watch.update(0.995, step) for step in range(3 * PATIENCE)]
    assert [step for step, line in enumerate(told) if line] == [PATIENCE - 1]
    assert f"at step {PATIENCE - 1}" in str(told[PATIENCE - 1]) and "99.5%" in str(told[PATIENCE - 1])


def test_collapse_is_a_rank_far_below_the_real_one() -> None:
    assert collapse_warning(0.3, 5) is None
    assert "at step 5" in str(collapse_warning(0.03, 5))
    # A random start's samples are a few directions of noise around one image.
    features = torch.randn(200, 40) * torch.tensor([1.0] * 4 + [0.0] * 36)
    assert effective_rank(features) == pytest.approx(4, rel=0.05)
    assert effective_rank(torch.randn(4000, 40)) == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_spectra_are_the_singular_values_of_the_weights_in_use(network: type[nn.Module]) -> None:
    plain = network(width=4, num_classes=3, spectral_norm=False)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    values = spectra(plain)
    state = plain.state_dict()
    assert values.keys() == {name for name, value in state.items() if name.endswith("weight") and value.ndim > 1}
    for name, value in values.items():
        assert value == pytest.approx(float(torch.linalg.svdvals(state[name].flatten(1))[0]), rel=1e-4)


def test_spectral_norm_keeps_them_at_one_and_looking_changes_nothing() -> None:
    network = Discriminator(width=4, num_classes=3, attention="none")
    for _ in range(30):
        network(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(value == pytest.approx(1, abs=0.02) for value in spectra(network).values())
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
