"""evaluate_gan.py: image folders, statistics files, names of references, networks, and one line for each mistake."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import urllib.error
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.judging import features as feature_networks
from gan.judging import inception_weights
from gan.judging import judge as judging
from gan.judging.distances import frechet_distance
from gan.judging.evaluation import Moments, find_split, measure, split_name
from gan.judging.features import FeatureNetwork
from gan.judging.images import stored_images
from gan.judging.judge import judge, plan_metrics
from gan.judging.options import JudgeConfig
from gan.judging.statistics_files import check_statistics, load_statistics, save_statistics

CPU = torch.device("cpu")
DIM = 6


def write_images(path: Path, count: int, seed: int, size: int = 8) -> Path:
    """A zip of class/number.png, two classes."""
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(content, format="PNG")
            archive.writestr(f"{('cat', 'dog')[number % 2]}/{number:04}.png", content.getvalue())
    return path


def toy_network(name: str) -> FeatureNetwork:
    """Features are sums of pixels; as a classifier it calls an image brighter in its first half a cat."""

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = torch.randn(images[0].numel(), DIM, generator=torch.Generator().manual_seed(1))
        flat = images.float().flatten(1) / 255
        first, second = flat.chunk(2, dim=1)
        logits = torch.stack([second.mean(dim=1), first.mean(dim=1)], dim=1) if name == "cifar10net" else flat
        return flat @ weight, logits if name in ("cifar10net", "inception") else None

    return FeatureNetwork(name, f"toy {name}", DIM, CPU, extract, ("dog", "cat") if name == "cifar10net" else ())


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is loaded, nothing is cached between tests, no weights of Inception lie anywhere."""
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EAGAN_EAT_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(judging, "load_network", lambda _config, name, _device: toy_network(name))


@pytest.fixture
def config(tmp_path: Path) -> JudgeConfig:
    """Generated images beside test images, the Fréchet distance."""
    fakes, reals = write_images(tmp_path / "fakes.zip", 30, 1), write_images(tmp_path / "toy-test.zip", 24, 0)
    return JudgeConfig(data=str(reals), images=fakes, metrics=("fd",))


def pixels_of(path: Path) -> Tensor:
    with zipfile.ZipFile(path) as archive:
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist())]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def moments_of(images: Tensor, name: str) -> Moments:
    features, _ = toy_network(name).extract(images)
    exact = features.double()
    return Moments(len(exact), exact.mean(0), torch.cov(exact.T), features)


def test_a_zip_of_images_is_judged_as_its_pixels_say(config: JudgeConfig) -> None:
    assert config.images is not None
    report = judge(config, CPU)
    real, fake = moments_of(pixels_of(Path(config.data)), "lite0"), moments_of(pixels_of(config.images), "lite0")
    expected = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
    assert report["metrics"] == {"fd_lite0_30_test": pytest.approx(expected, rel=1e-5)}
    assert report["images"] == str(config.images) and report["count"] == 30 and report["references"] == 24
    assert report["networks"] == {"lite0": "toy lite0"}


def test_a_folder_is_judged_as_its_zip(config: JudgeConfig, tmp_path: Path) -> None:
    assert config.images is not None
    with zipfile.ZipFile(config.images) as archive:
        archive.extractall(tmp_path / "folder")
    ours = judge(replace(config, images=tmp_path / "folder", count=12), CPU)["metrics"]
    assert ours == judge(replace(config, count=12), CPU)["metrics"]
    judged = stored_images(config.images, 12)
    assert set(judged.labels.tolist()) == {0, 1}, "a part of the images has all classes"
    first = judged.first(5)
    assert torch.equal(first, next(judged.batches())[:5])
    everything = torch.cat(list(stored_images(config.images, None).batches()))
    assert sorted(t.sum().item() for t in everything) == sorted(t.sum().item() for t in pixels_of(config.images))


def test_every_network_gives_its_own_name(config: JudgeConfig, tmp_path: Path) -> None:
    weights = tmp_path / "hub" / "checkpoints" / inception_weights.INCEPTION_FILES[0]
    weights.parent.mkdir(parents=True)
    weights.touch()
    everything = replace(
        config,
        metrics=("fid", "is", "kid", "fd", "kd", "prdc", "pytorch_fid", "class_accuracy"),
        features="cifar10net",
        references=12,
    )
    shares = [f"{share}_cifar10net_30_test12" for share in ("precision", "recall", "density", "coverage")]
    expected = {"fid30_test12", "is30_10splits", "kid30_test12", "pytorch_fid30_test12", "class_accuracy_cifar10net_30"}
    values = judge(everything, CPU)["metrics"]
    assert set(values) == {*expected, "fd_cifar10net_30_test12", "kd_cifar10net_30_test12", *shares}
    assert all(np.isfinite(value) for value in values.values())


def test_class_accuracy_counts_the_asked_classes(config: JudgeConfig) -> None:
    assert config.images is not None
    halves = [image.flatten().float().chunk(2) for image in pixels_of(config.images)]
    cats = [bool(first.mean() > second.mean()) for first, second in halves]
    asked = [True] * 15 + [False] * 15  # sorted by class
    share = np.mean([is_cat == wanted for is_cat, wanted in zip(cats, asked, strict=True)])
    values = judge(replace(config, metrics=("class_accuracy",)), CPU)["metrics"]
    assert values == {"class_accuracy_cifar10net_30": pytest.approx(share)}


def test_statistics_travel_through_pytorch_fids_format(config: JudgeConfig, tmp_path: Path) -> None:
    file = tmp_path / "kept.npz"
    with_images = judge(replace(config, save_statistics=file), CPU)["metrics"]
    with np.load(file) as stored:  # as pytorch-fid reads it
        mean, covariance = stored["mu"][:], stored["sigma"][:]
    real = moments_of(pixels_of(Path(config.data)), "lite0")
    np.testing.assert_allclose(mean, real.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, real.covariance, rtol=1e-4, atol=1e-6)
    assert judge(replace(config, data=str(file)), CPU)["metrics"] == pytest.approx(with_images, rel=1e-12)
    foreign = tmp_path / "fid-stats.npz"  # as pytorch-fid writes it: nothing said but mu and sigma
    np.savez_compressed(foreign, mu=mean, sigma=covariance)
    values = judge(replace(config, data=str(foreign)), CPU)["metrics"]
    assert values == {"fd_lite0_30_fid-stats": pytest.approx(with_images["fd_lite0_30_test"])}
    alone = tmp_path / "alone.npz"
    report = judge(JudgeConfig(data=config.data, metrics=("fd",), save_statistics=alone), CPU)
    assert report["metrics"] == {} and np.array_equal(np.load(alone)["sigma"], covariance)


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    moments, network = moments_of(torch.randint(256, (9, 3, 8, 8)).byte(), "lite0"), toy_network("lite0")
    save_statistics(tmp_path / "a.npz", moments, network, "train9")
    kept = load_statistics(tmp_path / "a.npz")
    check_statistics("a.npz", kept, network)
    assert kept.reference == "train9" and kept.moments.count == 9
    for other, words in (
        (toy_network("cifar10net"), "statistics of lite0, expected those of cifar10net"),
        (replace(network, identity="x"), "statistics of lite0 with other weights"),
        (replace(network, dim=7), "6 features of lite0, but lite0 has 7"),
    ):
        with pytest.raises(ValueError, match=words):
            check_statistics("a.npz", kept, other)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"points": np.zeros(3)}, "holds points, expected the mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"mu \(3,\) and sigma \(3, 4\), expected \(D,\) and \(D, D\)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "expected"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is no covariance"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "[Oo]bject arrays|pickle"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(arrays: dict, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"--data .*a.npz: .*{words}"):
        load_statistics(tmp_path / "a.npz")


def test_spoilt_statistics_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="--data .*a.npz"):
        load_statistics(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="--data .*b.npz: no such file"):
        load_statistics(tmp_path / "b.npz")


def test_references_are_called_what_they_are(config: JudgeConfig, tmp_path: Path) -> None:
    for name, split in {
        "cifar10-test.zip": "test", "cifar10-train": "train", "val": "val", "Validation_set": "val", "latest": None,
        "carnival": None, "faces": None, "cifar10test.zip": "test", "test_images": "test",
    }.items():  # fmt: skip
        assert find_split(name) == split, name
    data = ImageSet("faces", torch.zeros(40, 1, 1, 3).byte(), torch.zeros(40).long(), ["a"], "")
    assert [split_name(data, count) for count in (40, 20)] == ["train", "train20"]
    assert split_name(data, 20, "test") == "test20"
    unnamed = write_images(tmp_path / "faces.zip", 24, 0)
    assert list(judge(replace(config, data=str(unnamed)), CPU)["metrics"]) == ["fd_lite0_30_train"]
    assert list(judge(replace(config, data=str(unnamed), split="val"), CPU)["metrics"]) == ["fd_lite0_30_val"]
    with pytest.raises(ValueError, match="--split train: --data .*toy-test.zip holds the test split"):
        judge(replace(config, split="train"), CPU)


def test_mistakes_are_told_before_any_image_is_judged(
    config: JudgeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work has started")

    monkeypatch.setattr(judging, "measure", fail)
    statistics = tmp_path / "s.npz"
    np.savez(statistics, mu=np.zeros(DIM), sigma=np.eye(DIM))
    few, mixed, spoilt = (tmp_path / name for name in ("few.zip", "mixed.zip", "spoilt.zip"))
    write_images(few, 3, 0)
    write_images(mixed, 6, 0)
    write_images(spoilt, 6, 0)
    with zipfile.ZipFile(mixed, "a") as archive:
        content = io.BytesIO()
        Image.new("RGB", (8, 9)).save(content, format="PNG")
        archive.writestr("cat/tall.png", content.getvalue())
    with zipfile.ZipFile(spoilt, "a") as archive:
        archive.writestr("cat/broken.png", b"no image")
    on_statistics = replace(config, data=str(statistics))
    cases: dict[str, JudgeConfig] = {
        "--images .*expected either --weights or --images": replace(config, weights="a"),
        "--weights: expected": replace(config, images=None),
        "--truncation, --seed: expected only with --weights": replace(config, seed=1),
        "--references -1: expected": replace(config, references=-1),
        "--neighbours 21: expected 0 to 20": replace(config, neighbours=21),
        "--neighbours-out .*png": replace(config, neighbours=2, neighbours_out=tmp_path / "a.jpg"),
        "--save-statistics .*a.txt: expected a file that ends in .npz": replace(
            config, save_statistics=tmp_path / "a.txt"
        ),
        "--save-statistics .*expected one of fid, pytorch_fid, fd in --metrics.*got none": replace(
            config, save_statistics=tmp_path / "a.npz", metrics=("kd",)
        ),
        "--json .*is a folder": replace(config, json=tmp_path),
        "--count 31: --images .*holds 30": replace(config, count=31),
        "--count 1: expected at least 2": replace(config, count=1),
        "--count 5: counts generated": replace(config, images=None, save_statistics=tmp_path / "a.npz", count=5),
        "--images .*few.zip: holds 3, expected at least 6": replace(config, images=few, metrics=("prdc",)),
        "--images .*mixed.zip: cat/tall.png has 8 x 9 pixels|squares of one size": replace(config, images=mixed),
        "--images .*spoilt.zip: cat/broken.png cannot be read as an image": replace(config, images=spoilt),
        "--images .*nowhere: no such file": replace(config, images=tmp_path / "nowhere"),
        "--data .*few.zip: holds 3 images, expected at least 6": replace(config, data=str(few), metrics=("prdc",)),
        "--metrics kd: needs real images": replace(on_statistics, metrics=("kd",)),
        "--references 5: needs real images": replace(on_statistics, references=5),
        "--neighbours 2: needs real images": replace(on_statistics, neighbours=2),
        "--features cifar10net: not used by --metrics is": replace(
            config, metrics=("is",), features="cifar10net", inception_weights=few
        ),
        "--metrics fd: not with --features inception; on Inception it is called fid": replace(
            config, features="inception"
        ),
        "--download: --metrics fd need no Inception weights": replace(config, download=True),
        "--classifier a: not used by": replace(config, classifier="a"),
        "--inception-weights .*: not used by --metrics fd": replace(config, inception_weights=few),
    }
    for words, wrong in cases.items():
        with pytest.raises((ValueError, OSError), match=words) as caught:
            judge(wrong, CPU)
        assert "\n" not in str(caught.value)


def test_classes_that_the_classifier_does_not_know_are_refused(tmp_path: Path, config: JudgeConfig) -> None:
    with zipfile.ZipFile(tmp_path / "owls.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"owl/{number}.ppm", b"P6 8 8 255\n" + bytes(192))
    wrong = replace(config, images=tmp_path / "owls.zip", metrics=("class_accuracy",))
    with pytest.raises(ValueError, match="--metrics class_accuracy: cifar10net does not know the class owl, only dog"):
        judge(wrong, CPU)


def test_plan_follows_the_network_asked_for() -> None:
    assert plan_metrics(["prdc", "fd"], True, "cifar10net") == {"cifar10net": ["fd", "prdc"]}
    assert plan_metrics(["class_accuracy", "fd"], False) == {"lite0": ["fd"], "cifar10net": ["class_accuracy"]}
    assert plan_metrics(["pytorch_fid", "fid"], True) == {"inception": ["fid"], "pytorch_fid": ["pytorch_fid"]}
    assert plan_metrics(["prdc", "class_accuracy"], False) == {"cifar10net": ["class_accuracy", "prdc"]}
    with pytest.raises(ValueError, match="--metrics pytorch_fid: needs Inception's weights.*github.com.*--download"):
        plan_metrics(["pytorch_fid"], False)


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(
    config: JudgeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(OSError, match="--download: .*no route to host") as caught:
        judge(replace(config, metrics=("fid",), download=True), CPU)
    for word in (inception_weights.INCEPTION_FILES[0], str(tmp_path / "hub"), "--inception-weights", "https://"):
        assert word in str(caught.value)


def test_a_download_lands_in_torch_hubs_cache_once(monkeypatch: pytest.MonkeyPatch, config: JudgeConfig) -> None:
    fetched = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        assert hash_prefix == "6726825d" and not progress
        fetched.append(url)
        Path(target).touch()

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        values = judge(replace(config, metrics=("fid",), download=True), CPU)["metrics"]
        assert list(values) == ["fid30_test"]
    assert fetched == [inception_weights.INCEPTION_URL]


def test_a_missing_or_foreign_classifier_is_told() -> None:
    with pytest.raises(ValueError, match="--classifier nowhere: no run folder"):
        feature_networks.load_classifier_features("nowhere", CPU)
    with pytest.raises(ValueError, match=r"holds a gan.generator, expected a gan.classifier"):
        feature_networks.load_classifier_features("eagan-cifar10-small", CPU)


def live_bytes() -> int:
    """Memory of all tensors that anything holds."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) is Tensor:
            storage = thing.untyped_storage()
            with contextlib.suppress(RuntimeError):  # left by a test that traced: it has no memory
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_memory_does_not_grow_from_5000_to_50000_samples() -> None:
    """Everything that is alive while samples stream by: two networks, the score, 1,000 features kept."""
    seen: dict[int, int] = {}

    def batches() -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(0)
        for number in range(500):
            if number in (50, 499):
                gc.collect()
                seen[number] = live_bytes()
            yield torch.randint(256, (100, 3, 4, 4), generator=random, dtype=torch.uint8)

    networks = [toy_network("inception"), toy_network("lite0")]
    measured = measure(batches(), 50_000, networks, keep=1000)
    assert [m.moments.count for m in measured] == [50_000] * 2 and len(measured[0].moments.features) == 1000
    assert seen[499] <= seen[50] + 48 * 8 * 10, seen  # the score's sums of ten splits


def test_json_holds_what_was_printed(
    config: JudgeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    import evaluate_gan

    evaluate_gan.evaluate(replace(config, json=tmp_path / "deep" / "values.json", save_statistics=tmp_path / "s.npz"))
    printed = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "deep" / "values.json").read_text())
    assert printed[-1] == f"written: {tmp_path / 's.npz'}"
    name, value = printed[0].split()
    assert float(value) == pytest.approx(report["metrics"][name], rel=1e-4)
