"""What runs on a GPU computes what the CPU computes: every attention and every network. Skipped without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gan.discriminator import Discriminator
from gan.generator import Generator
from pointcloud.classifier import PointClassifier
from pointcloud.geometry import farthest_points, k_nearest
from pointcloud.segmenter import PartSegmenter
from shared_attn import create_attention, list_attentions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def _compare(module: nn.Module, *inputs: Tensor, tolerance: float = 2e-4, **keywords: object) -> None:
    """Outputs and parameter gradients on CUDA against the CPU's, in float32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        module.to(device).zero_grad()
        y = module(*(x.to(device) for x in inputs), **keywords)
        y.square().mean().backward()
        outputs.append(y.detach().cpu())
        gradients.append([p.grad.cpu() if p.grad is not None else None for p in module.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1], atol=tolerance, rtol=tolerance)
    for expected, found in zip(*gradients, strict=True):
        if expected is not None:
            torch.testing.assert_close(expected, found, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("name", list_attentions())
def test_attention(name: str) -> None:
    _compare(create_attention(name, 64).eval(), torch.randn(2, 256, 64), grid=(16, 16))


@pytest.mark.parametrize("attention", ["external", "sagan"])
def test_gan(attention: str) -> None:
    labels = torch.tensor([1, 7])
    _compare(Generator(width=16, attention=attention).eval(), torch.randn(2, 128), labels)
    _compare(Discriminator(width=16, attention=attention).eval(), torch.randn(2, 3, 32, 32), labels)


@pytest.mark.parametrize("attention", ["external", "offset"])
def test_point_networks(attention: str) -> None:
    points = torch.randn(2, 512, 3)
    _compare(PointClassifier(10, attention=attention, num_centres=(128, 64), dropout=0.0).eval(), points)
    _compare(PartSegmenter(6, 2, attention=attention, dropout=0.0).eval(), points, torch.tensor([0, 1]))


def test_geometry() -> None:
    points = torch.randn(4, 700, 3)
    chosen = farthest_points(points, 200)
    assert torch.equal(farthest_points(points.cuda(), 200).cpu(), chosen)
    queries = points[:, :50]
    assert torch.equal(
        k_nearest(points.cuda(), queries.cuda(), 16).cpu().sort().values, k_nearest(points, queries, 16).sort().values
    )
