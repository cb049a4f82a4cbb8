"""What runs on a GPU computes what the CPU computes: every attention and every network. Skipped without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.presets import PRESETS as GAN_PRESETS
from gan.training import train as train_gan
from pointcloud.classifier import PointClassifier
from pointcloud.geometry import farthest_points, group, k_nearest
from pointcloud.neighbours import NeighbourEmbedding
from pointcloud.presets import PRESETS
from pointcloud.segmenter import PartSegmenter
from pointcloud.training import train
from shared_attn import create_attention, list_attentions
from shared_attn.runtime.progress import read_metrics

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
    assert torch.equal(k_nearest(points.cuda(), queries.cuda(), 16).cpu(), k_nearest(points, queries, 16))


@pytest.mark.parametrize("kind", ["normal", "grid", "duplicates", "far"])
@pytest.mark.parametrize("sizes", [(32, 1024, 512, 32, 512), (3, 700, 50, 40, 200), (2, 8192, 100, 16, 64)])
@pytest.mark.parametrize("ragged", [False, True])
def test_point_kernels_equal_their_twins(kind: str, sizes: tuple[int, ...], ragged: bool) -> None:
    pytest.importorskip("triton")
    from point_kernel_comparison import Case, compare

    compare(Case(*sizes, kind=kind, ragged=ragged), "cuda")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_neighbour_embedding_trains_as_on_a_cpu(precision: torch.dtype) -> None:
    """All pairs at once, against the few at a time of the CPU."""
    embedding, found = NeighbourEmbedding(16, 32), []
    features, points = torch.randn(4, 200, 16), torch.randn(4, 200, 3)
    for device in ("cpu", "cuda"):
        embedding.to(device).train().zero_grad()
        cloud, x = points.to(device), features.to(device).requires_grad_()
        centres = farthest_points(cloud, 64)
        near = k_nearest(cloud, group(cloud, centres), 16)
        with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
            y = embedding(x, centres, near)
        gradients = torch.autograd.grad(y.float().square().sum(), [x, *embedding.parameters()])
        found.append([y.float().cpu(), *(gradient.cpu() for gradient in gradients)])
    for ours, theirs in zip(*found, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (1e-3 if precision == torch.float32 else 0.1)


EPILOGUE = {"mask": "empty", "eps": 1e-9, "gate": True, "bias": True, "residual": True, "relu": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((3, 1000, 256, 64), {}),
        ((3, 1000, 256, 64), EPILOGUE),
        ((2, 3000, 512, 64), {"layout": "map", "weights": torch.float32, **EPILOGUE}),  # a map as convolutions leave it
        ((2, 333, 130, 100), {"layout": "slice", "scale": 30.0, **EPILOGUE}),
        ((1, 70, 513, 256), {"layout": "expanded", "W": 77, "bias": True}),
        ((2, 1, 7, 3), {"layout": "strided"}),
    ],
)
def test_external_attention_kernels(
    size: tuple[int, int, int, int], options: dict[str, Any], dtype: torch.dtype
) -> None:
    """The launches themselves, against their twin in float64; of float32 exactly, without TF32."""
    pytest.importorskip("triton")
    from kernel_comparison import Case, compare

    torch.backends.cuda.matmul.allow_tf32 = False
    compare(Case(*size, dtype=dtype, **options), "cuda")


@pytest.mark.parametrize("compiled", [False, True])
def test_external_attention_goes_through_its_kernels(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """What a user calls reaches the kernels by itself, eagerly and compiled, and repeats bit for bit."""
    pytest.importorskip("triton")
    from shared_attn.kernels import external_launch

    calls = []
    for name in ("forward", "backward"):
        launch = getattr(external_launch, name)
        monkeypatch.setattr(external_launch, name, lambda *a, _to=launch, _by=name: (calls.append(_by), _to(*a))[1])
    attention = create_attention("external", 96).cuda()
    x = torch.randn(4, 500, 96, device="cuda", requires_grad=True)
    function = torch.compile(attention) if compiled else attention
    rounds = [torch.autograd.grad(function(x).square().sum(), [x, *attention.parameters()]) for _ in range(2)]
    assert set(calls) == {"forward", "backward"}
    assert all(torch.equal(first, second) for first, second in zip(*rounds, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_point_training_learns_what_it_learns_on_a_cpu(tmp_path: Path, precision: str, compiled: bool) -> None:
    """The same clouds and weights on both, without dropout: the losses stay together for a few steps."""
    losses = {}
    for device in ("cpu", "cuda"):
        config = replace(
            PRESETS["eat-shapes-small"],
            out=tmp_path / device,
            device=device,
            precision=precision,
            compile=compiled and device == "cuda",
            epochs=2,
            dropout=0.0,
            validation=0.9,
            norm_clouds=64,
        )
        train(config)
        losses[device] = [line["train_loss"] for line in read_metrics(tmp_path / device) if "train_loss" in line]
    assert len(losses["cuda"]) == 2
    tolerance = 0.02 if precision == "fp32" else 0.05
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)


def test_captured_gan_steps_train_as_eager_ones(tmp_path: Path) -> None:
    """The same run with every step replayed as a CUDA graph, penalties and adaptive augmentation included."""
    config = replace(
        GAN_PRESETS["eagan-cifar10"],
        data="shapes",
        images=640,
        generator_width=12,
        discriminator_width=24,
        attention_spectral_norm=False,
        batch_size=32,
        discriminator_steps=1,
        loss="relativistic",
        r1_gamma=0.1,
        r2_gamma=0.1,
        penalty_every=4,
        augment=("flip", "color", "translation"),
        augment_probability=0.3,
        augment_target=0.6,
        features="none",
        device="cuda",
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    losses = []
    for captured in (False, True):
        out = tmp_path / str(captured)
        train_gan(replace(config, out=out, cuda_graphs=captured, log_every=1))
        losses.append([line["discriminator_loss"] for line in read_metrics(out) if "discriminator_loss" in line])
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-2)
