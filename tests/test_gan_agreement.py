"""Distances and scores agree with torchmetrics and pytorch-fid on the same features, singular cases included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gan.data.datasets import ImageSet
from gan.judging.distances import block_kernel_distance, frechet_distance, kernel_distance
from gan.judging.evaluation import FeatureMoments, evaluate, measure
from gan.judging.features import FeatureNetwork, load_features

CPU = torch.device("cpu")
DIM = 24


class Features(nn.Module):
    """Smooth features of pixels, which torchmetrics takes as a feature extractor."""

    num_features = DIM

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 8 * 8, DIM, bias=False, dtype=torch.float64)
        nn.init.normal_(self.map.weight, generator=torch.Generator().manual_seed(3))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.map(images.double().flatten(1) / 255)).mul(3)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    module = Features()

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return module(images), module(images)

    return FeatureNetwork("inception", "toy", DIM, CPU, extract)


def images(count: int, seed: int, brightest: int = 256) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(brightest, (count, 3, 8, 8), generator=random, dtype=torch.uint8)


def reference_set(real: Tensor) -> ImageSet:
    return ImageSet("a", real.permute(0, 2, 3, 1), torch.zeros(len(real)).long(), ["a"], f"{len(real)}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def their_distance(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """pytorch-fid's function; it asks scipy's root for an error estimate, which SciPy gives no longer from 1.18 on."""
    from pytorch_fid import fid_score
    from scipy.linalg import sqrtm

    class Linalg:
        @staticmethod
        def sqrtm(matrix: np.ndarray, disp: bool = True) -> Any:
            return sqrtm(matrix) if disp else (sqrtm(matrix), 0.0)

    monkeypatch.setattr(fid_score, "linalg", Linalg)
    return fid_score.calculate_frechet_distance


@pytest.mark.parametrize(("reals", "fakes"), [(200, 150), (200, 10), (12, 9)])  # 24 features: the last two are singular
def test_frechet_distance_is_torchmetrics(network: FeatureNetwork, reals: int, fakes: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = images(reals, 0), images(fakes, 1, brightest=200)
    theirs = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    for batch, is_real in ((real, True), (fake, False)):
        for part in batch.split(64):
            theirs.update(part, real=is_real)
    values = evaluate(fake.split(7), fakes, reference_set(real), network, ["fid"], references=0)
    assert list(values.values())[0] == pytest.approx(float(theirs.compute()), rel=1e-5)


@pytest.mark.parametrize("samples", [500, 40])  # 64 features: full rank, and singular
def test_frechet_distance_is_pytorch_fids(their_distance: Callable[..., float], samples: int) -> None:
    random = np.random.default_rng(0)
    sets = [random.normal(size=(samples, 64)) @ random.normal(size=(64, 64)) + random.normal(size=64) for _ in "ab"]
    ours = []
    for features in sets:
        streamed = FeatureMoments(64, keep=0)
        for part in torch.from_numpy(features).split(11):
            streamed.update(part)
        moments = streamed.finish()
        np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)
        ours += [moments.mean, moments.covariance]
    theirs = their_distance(*(t.numpy() for t in ours))
    assert frechet_distance(*ours) == pytest.approx(float(theirs), rel=1e-9 if samples > 64 else 1e-4)


def test_frechet_distance_of_commuting_covariances_is_known() -> None:
    """Diagonal covariances: a sum over the features; with features that do not vary at all on one side or on both."""
    first, second = torch.tensor([4.0, 9.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 16.0, 0.0])
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = float((first.sqrt() - second.sqrt()).square().sum() + mean.square().sum())
    assert frechet_distance(torch.zeros(4), first.diag(), mean, second.diag()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("samples", [3, 20, 63])  # 64 features
def test_singular_covariances_lose_no_digits(samples: int) -> None:
    """With X, Y the centred samples, Tr sqrt(C1 C2) is the sum of the singular values of X Y^T: no root at all."""
    random = torch.Generator().manual_seed(0)
    scale = torch.logspace(2, -2, 64, dtype=torch.float64)
    first = torch.randn(samples, 64, dtype=torch.float64, generator=random) * scale
    second = torch.randn(samples + 2, 64, dtype=torch.float64, generator=random) * 3
    centred = [(t - t.mean(0)) / (len(t) - 1) ** 0.5 for t in (first, second)]
    overlap = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    covariances = [t.T @ t for t in centred]
    expected = (first.mean(0) - second.mean(0)).square().sum() + sum(c.trace() for c in covariances) - 2 * overlap
    moments = [t for mean, c in zip((first, second), covariances, strict=True) for t in (mean.mean(0), c)]
    assert frechet_distance(*moments) == pytest.approx(float(expected), rel=1e-12)
    same = frechet_distance(*moments[:2], *moments[:2])
    assert abs(same) < 1e-12 * float(covariances[0].trace())


def test_kernel_distance_is_torchmetrics(network: FeatureNetwork) -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = images(60, 0), images(60, 1, brightest=150)
    theirs = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=60)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    expected = float(theirs.compute()[0])
    values = evaluate(fake.split(9), 60, reference_set(real), network, ["kid"], references=0)
    assert values["kid60_train"] == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_of_subsets_estimates_the_same(network: FeatureNetwork) -> None:
    """torchmetrics draws random subsets, here each sample is used once: equal on average."""
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = images(400, 0), images(400, 1, brightest=200)
    theirs = KernelInceptionDistance(feature=Features(), subsets=40, subset_size=100)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    mean, deviation = (float(value) for value in theirs.compute())
    ours = block_kernel_distance(network.extract(real)[0], network.extract(fake)[0], size=100)
    assert abs(ours - mean) < 4 * deviation / 2  # four blocks of ours
    assert kernel_distance(network.extract(real)[0], network.extract(fake)[0]) == pytest.approx(mean, abs=deviation)


def test_inception_score_is_torchmetrics_in_a_whole_evaluation(
    network: FeatureNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.image.inception import InceptionScore

    fake = images(90, 1)
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))  # torchmetrics shuffles, unseeded
    theirs = InceptionScore(feature=Features(), splits=10)
    theirs.update(fake)
    values = evaluate(fake.split(13), 90, reference_set(images(30, 0)), network, ["is"], references=0)
    assert values == {"is90_10splits": pytest.approx(float(theirs.compute()[0]), rel=1e-5)}


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as pytorch-fid publishes it, with random numbers."""
    from pytorch_fid import inception

    torch.manual_seed(0)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patched.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = inception.fid_inception_v3()
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_canonical_distance_is_pytorch_fids_from_image_folders(
    inception_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytorch_fid import fid_score, inception

    network = load_features("pytorch_fid", CPU, inception_file)
    assert network is not None and "SHA-256 begins with" in capsys.readouterr().err
    folders, sets = [tmp_path / "real", tmp_path / "fake"], [images(9, 0), images(9, 1)]
    for folder, pixels in zip(folders, sets, strict=True):
        folder.mkdir()
        for place, image in enumerate(pixels):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        state = torch.load(inception_file, weights_only=True)
        patched.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
        model = inception.InceptionV3()
    theirs = [fid_score.compute_statistics_of_path(str(folder), model, 4, 2048, "cpu", 0) for folder in folders]
    for pixels, (mean, covariance) in zip(sets, theirs, strict=True):
        (ours,) = measure(pixels.split(5), 9, [network])
        np.testing.assert_allclose(ours.moments.mean, mean, rtol=1e-4, atol=1e-6)
        scale = np.abs(covariance).max()
        np.testing.assert_allclose(ours.moments.covariance, covariance, atol=1e-4 * scale)
    values = evaluate(sets[1].split(5), 9, reference_set(sets[0]), network, ["pytorch_fid"], references=0)
    root_free = frechet_distance(*(torch.from_numpy(t) for pair in theirs for t in pair))
    assert values == {"pytorch_fid9_train": pytest.approx(root_free, rel=1e-3)}


@pytest.mark.slow
def test_both_inceptions_are_one_network(inception_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pytorch-fid and torchmetrics scale pixels by 127.5 and 128: nearly equal features, and so two names."""
    batch = images(3, 0)
    ours = [load_features(name, CPU, inception_file) for name in ("inception", "pytorch_fid")]
    first, second = (network.extract(batch)[0] for network in ours if network is not None)
    capsys.readouterr()
    assert first.shape == second.shape == (3, 2048) and not torch.equal(first, second)
    assert float((first - second).norm() / first.norm()) < 0.05
