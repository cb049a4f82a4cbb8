"""Every variant learns in both families: a few steps on one batch, through layers, gates and normalisations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gan.discriminator import Discriminator
from gan.generator import Generator
from pointcloud.classifier import PointClassifier
from shared_attn import list_attentions

EVERY = pytest.mark.parametrize("attention", list_attentions())
STEPS = 8


@EVERY
@pytest.mark.parametrize("form", ["offset", "plain"])
def test_a_point_network_learns_with_any_attention(attention: str, form: str) -> None:
    torch.manual_seed(0)
    model = PointClassifier(
        4,
        attention=attention,
        form=form,
        num_layers=2,
        embed_channels=(16,),
        neighbour_channels=(16, 32),
        num_centres=(48, 21),
        num_neighbours=8,
        fuse_channels=64,
        head_channels=(32,),
        dropout=0.0,
    )
    points, label = torch.randn(8, 96, 3), torch.arange(8) % 4
    points *= 0.5 + label.view(-1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(points), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    assert torch.isfinite(model.eval()(points)).all()


@EVERY
@pytest.mark.parametrize("size", [32, 64])
def test_a_gan_learns_with_any_attention(attention: str, size: int) -> None:
    """The discriminator learns to tell a batch of noise from the generator's, then the generator answers."""
    torch.manual_seed(0)
    shape = {"image_size": size, "num_classes": 3, "width": 8, "attention": attention, "attention_spectral_norm": False}
    generator, discriminator = Generator(**shape), Discriminator(**shape)
    z, labels = torch.randn(4, generator.latent_dim), torch.tensor([0, 1, 2, 0])
    real = torch.rand(4, 3, size, size) * 2 - 1
    fake = generator(z, labels).detach()
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.9))
    gaps = []
    for _ in range(STEPS):
        gap = discriminator(real, labels).mean() - discriminator(fake, labels).mean()
        optimizer.zero_grad()
        (-gap).backward()
        optimizer.step()
        gaps.append(gap.item())
    assert gaps[-1] > gaps[0] + 0.1, gaps
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.0, 0.9))
    scores = []
    for _ in range(STEPS):
        score = discriminator(generator(z, labels), labels).mean()
        optimizer.zero_grad()
        (-score).backward()
        optimizer.step()
        scores.append(score.item())
    assert scores[-1] > scores[0], scores
    if attention != "none":
        for network in (generator, discriminator):
            assert network.get_parameter("attention.gate").abs().item() > 0, "the gate has opened"
