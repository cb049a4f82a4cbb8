"""Nearest training images: against a loop in float64, streamed, drawn; authenticity of copies and of new draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.judging import memorisation
from gan.judging.features import FeatureNetwork
from gan.judging.memorisation import authenticity, nearest, training_features, write_neighbours

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path))
    monkeypatch.setattr(memorisation, "BLOCK", 7)
    return tmp_path


def features(count: int, seed: int, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_nearest_is_the_loops_over_every_block() -> None:
    training, queries = features(30, 0), features(6, 1)
    distances, rows = nearest(torch.from_numpy(queries), training, 4)
    for query, found, places in zip(queries.astype(np.float64), distances.tolist(), rows.tolist(), strict=True):
        exact = [float(np.sqrt(((query - other.astype(np.float64)) ** 2).sum())) for other in training]
        order = sorted(range(30), key=lambda place: exact[place])[:4]
        assert places == order
        assert found == pytest.approx([exact[place] for place in order], rel=1e-9)


def test_nearest_of_training_images_leaves_themselves_out() -> None:
    training = features(20, 0)
    training[9] = training[4]  # a duplicate is another image
    chosen = torch.tensor([4, 9, 11])
    distances, rows = nearest(torch.from_numpy(training[chosen]), training, 1, itself=chosen)
    assert rows[:2, 0].tolist() == [9, 4] and distances[:2, 0].abs().max() < 1e-6 and rows[2, 0] != 11
    assert nearest(torch.from_numpy(training[:2]), training[:3], 10)[0].shape == (2, 3)  # there are no more


def test_authenticity_tells_copies_from_new_draws() -> None:
    training, fresh = features(400, 0, dim=8), features(300, 1, dim=8)
    copies = training[:50] + 1e-3 * features(50, 2, dim=8)

    def share(samples: np.ndarray) -> float:
        distances, rows = nearest(torch.from_numpy(samples), training, 1)
        return authenticity(distances[:, 0], rows[:, 0], training)

    assert share(copies) == 0
    assert share(training[:50] + 10) == 1
    exact = np.linalg.norm(training[:, None].astype(np.float64) - training, axis=2)
    np.fill_diagonal(exact, np.inf)
    across = np.linalg.norm(fresh[:, None].astype(np.float64) - training, axis=2)
    expected = np.mean([row.min() > exact[row.argmin()].min() for row in across])
    assert share(fresh) == pytest.approx(expected) and 0.3 < expected < 0.9


def toy(identity: str = "toy") -> FeatureNetwork:
    def extract(images: Tensor) -> tuple[Tensor, None]:
        return images.float().mean(dim=(2, 3)), None

    return FeatureNetwork("lite0", identity, 3, CPU, extract)


def image_set(count: int, size: int = 8) -> ImageSet:
    pixels = torch.randint(256, (count, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("a", pixels, torch.zeros(count).long(), ["a"], "hash")


def test_training_features_lie_in_a_file_and_are_kept(cache: Path) -> None:
    data = image_set(250)
    kept = training_features(data, toy())
    assert isinstance(kept, np.memmap)
    np.testing.assert_allclose(kept, data.images.float().mean(dim=(1, 2)), rtol=1e-6)

    def fail(_: Tensor) -> tuple[Tensor, None]:
        raise AssertionError("computed again")

    assert np.array_equal(training_features(data, replace(toy(), extract=fail)), kept)
    with pytest.raises(AssertionError, match="computed again"):
        training_features(data, replace(toy("other weights"), extract=fail))
    (file,) = (cache / "features").iterdir()  # nothing half-written is left
    expected = np.array(kept)
    del kept
    file.write_bytes(b"spoilt")
    assert np.array_equal(training_features(data, toy()), expected)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="features cannot be kept .*EAGAN_EAT_CACHE names another folder"):
        training_features(image_set(5), toy())


@pytest.mark.parametrize("samples", [1, 5])
def test_picture_shows_samples_and_their_neighbours(samples: int, tmp_path: Path) -> None:
    data = image_set(20, size=32)
    shown = 255 - data.images[:samples].permute(0, 3, 1, 2)
    rows = torch.arange(samples * 3).reshape(samples, 3)
    write_neighbours(tmp_path / "page.png", shown, data, torch.ones(samples, 3), rows, "lite0")
    page = np.asarray(Image.open(tmp_path / "page.png"))

    def stands_in_page(image: np.ndarray) -> bool:
        """Every image is shown with each pixel as a square of two."""
        large = image.repeat(2, axis=0).repeat(2, axis=1)
        corners = np.argwhere((page[: -63 or None, : -63 or None] == large[0, 0]).all(axis=2))
        return any(np.array_equal(page[y : y + 64, x : x + 64], large) for y, x in corners)

    assert all(stands_in_page(image.permute(1, 2, 0).numpy()) for image in shown)
    assert all(stands_in_page(data.images[row].numpy()) for row in rows.flatten())
    assert not stands_in_page(data.images[19].numpy())
