"""Images decoded on the way: the same batches as from memory, for any number of workers, processes and resumptions."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_images import encoded, noise, png, write

from gan import sampling
from gan.data import datasets
from gan.data import streamed as streamed_images
from gan.data.batches import ImageStream
from gan.data.datasets import ImageSet, load_image_set, open_source
from gan.data.source import StoredImages
from gan.data.streamed import StreamedImages, fetch
from gan.judging.evaluation import real_moments
from gan.judging.features import FeatureNetwork
from gan.presets import GanConfig
from gan.training import train

CPU = torch.device("cpu")
COUNT = 45


@pytest.fixture(scope="module", params=["zip", "folder"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes and kinds in three classes, two of them damaged, one after the other."""
    files = {}
    for i in range(COUNT):
        image = Image.fromarray(noise(i, 24 + 7 * (i % 5)))
        image = image.convert(("RGB", "L", "P", "RGBA")[i % 4])
        files[f"{('ape', 'bee', 'cow')[i % 3]}/{i:02}.png"] = encoded(image)
    files |= {"bee/04.png": files["bee/04.png"][:300], "bee/07.png": b"no image"}
    name = "images.zip" if request.param == "zip" else "images"
    return write(tmp_path_factory.mktemp("streamed") / name, files)


def stream(source: Path, mode: str, **options: Any) -> ImageStream:
    data = load_image_set(str(source), 32, stream=mode)
    assert isinstance(data.images, StreamedImages) == (mode == "always")
    return ImageStream(data, seed=3, flip=True, device=CPU, **options)


def same(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_batches_are_those_from_memory(source: Path, workers: int) -> None:
    resident, streamed = stream(source, "never"), stream(source, "always", workers=workers)
    places = [*range(0, 120, 8), 37, 45, 0]  # across epochs; resumed twice; begun again
    for shown in places:
        assert same(streamed.batch(shown, 8), resident.batch(shown, 8)), shown
    assert same(streamed.batch(5, 3), resident.batch(5, 3))  # another batch size
    streamed.close()
    assert same(streamed.batch(8, 3), resident.batch(8, 3))  # closed is not broken
    streamed.close()


def test_mapped_batches_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = stream(source, "never")
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 1000)
    streamed = load_image_set(str(source), 32)
    assert isinstance(streamed.images, StreamedImages)  # auto: nothing is written unless it is asked for
    mapped = stream(source, "never")
    assert isinstance(mapped.images, torch.Tensor) and list((tmp_path / "images").glob("*.raw"))
    assert same(mapped.batch(30, 40), resident.batch(30, 40))
    found = load_image_set(str(source), 32)
    assert isinstance(found.images, torch.Tensor) and found.hash == streamed.hash


def test_streaming_draws_no_random_numbers_of_the_training(source: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    streamed = stream(source, "always", workers=1)
    streamed.batch(0, 4)
    streamed.close()
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("mode", ["never", "always"])
def test_processes_share_each_batch(source: Path, mode: str) -> None:
    whole = stream(source, mode, workers=0)
    for world_size in (2, 4):
        ranks = [stream(source, mode, workers=0, rank=rank, world_size=world_size) for rank in range(world_size)]
        for shown in (0, 36, 41):  # the last two across an epoch's end
            shares = [rank.batch(shown, 12) for rank in ranks]
            assert all(len(labels) == 12 // world_size for _, labels in shares)
            joined = [torch.cat([share[part] for share in shares]) for part in (0, 1)]
            assert same((joined[0], joined[1]), whole.batch(shown, 12))
    with pytest.raises(ValueError, match="--batch-size 10: expected a multiple of the 4 processes"):
        ranks[0].batch(0, 10)
    with pytest.raises(ValueError, match="rank 2: expected 0 to below the world size, 2"):
        stream(source, mode, rank=2, world_size=2)
    with pytest.raises(ValueError, match="--workers -1: expected at least 0"):
        stream(source, mode, workers=-1)


def test_streamed_images_are_indexed_as_a_tensor_is(source: Path) -> None:
    resident, streamed = (load_image_set(str(source), 32, stream=mode) for mode in ("never", "always"))
    assert resident.places is not None
    items = torch.randperm(COUNT)[:20]
    found = streamed.images[items]
    assert found.dtype == torch.uint8 and torch.equal(found, resident.images[resident.places[items]])
    assert streamed.images[torch.empty(0, dtype=torch.long)].shape == (0, 32, 32, 3)
    assert streamed.images.shape == (COUNT, 32, 32, 3) and streamed.describe()["images"] == COUNT
    assert streamed.hash == load_image_set(str(source), 32, stream="always").hash
    assert streamed.hash != load_image_set(str(source), 64, stream="always").hash


def test_reference_moments_of_streamed_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "a.zip", {f"{i % 2}/{i}.png": png(i, 40) for i in range(130)})

    def extract(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images.float().mean(dim=(2, 3)), None

    network = FeatureNetwork("lite0", "means", 3, CPU, extract)
    wanted, found = (real_moments(load_image_set(str(source), 32, stream=m), network, 120) for m in ("never", "always"))
    assert torch.equal(wanted.mean, found.mean) and torch.equal(wanted.covariance, found.covariance)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_reported_once_and_the_next_readable_image_stands_in(source: Path, workers: int) -> None:
    data = load_image_set(str(source), 32, stream="always")
    said: list[str] = []
    assert isinstance(data.images, StreamedImages)
    data.images.report = said.append
    streamed = ImageStream(data, seed=0, flip=False, device=CPU, workers=workers)
    images, labels = streamed.batch(0, COUNT)
    streamed.batch(COUNT, COUNT)
    streamed.close()
    assert len(said) == len(data.skipped) == 2 and data.describe()["skipped"] == 2
    assert sorted(line.split(":")[0] for line in data.skipped) == ["bee/04.png", "bee/07.png"]
    opened = open_source(source)
    names = [opened.describe(item) for item in range(COUNT)]
    third = torch.from_numpy(np.array(opened.decode(names.index("bee/10.png"), 32)))
    copies = [(image.permute(1, 2, 0) + 1) * 127.5 for image in images]
    assert sum(torch.equal(copy.round().byte(), third) for copy in copies) == 3  # itself, and for both before it
    assert labels.bincount().tolist() == [15, 15, 15]


def test_too_much_damage_is_refused_while_streaming(tmp_path: Path) -> None:
    source = write(tmp_path / "a.zip", {f"cat/{i:02}.png": png(i) if i % 4 else b"x" for i in range(40)})
    for workers in (0, 1):
        streamed = stream(source, "always", workers=workers)
        with pytest.raises(ValueError, match=r"--data .*a.zip: 3 of 40 images cannot be read, first cat/.*at most 5%"):
            for shown in range(0, 40, 4):
                streamed.batch(shown, 4)
        streamed.close()
    nothing = write(tmp_path / "b.zip", {"cat/1.png": b"x"})
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        stream(nothing, "always", workers=0).batch(0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file_is_named(workers: int, tmp_path: Path) -> None:
    source = write(tmp_path / "images", {f"cat/{i}.png": png(i) for i in range(6)})
    data = load_image_set(str(source), 32, stream="always")
    (source / "cat" / "4.png").unlink()
    streamed = ImageStream(data, seed=0, flip=True, device=CPU, workers=workers)
    with pytest.raises(FileNotFoundError, match=rf"^--data {source}: cat/4.png has vanished; put it back") as error:
        streamed.batch(0, 6)
    streamed.close()
    assert "\n" not in str(error.value) and not data.skipped


def test_a_failing_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "images", {f"cat/{i}.png": png(i) for i in range(40)})
    opened = open_source(source)
    monkeypatch.setattr(Path, "read_bytes", lambda _path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    failure = fetch(opened, 32, [3]).failure
    assert isinstance(failure, OSError) and str(failure).endswith("cat/11.png cannot be read (Input/output error)")
    with pytest.raises(OSError, match="cannot be read"):
        load_image_set(str(source), 32)


class Dying(StoredImages):
    """Ends the process that decodes, unless it is the test's."""

    home = os.getpid()

    def read(self, item: int) -> np.ndarray:
        if os.getpid() != self.home:
            os._exit(1)
        return super().read(item)


def test_a_dead_worker_is_one_line() -> None:
    dying = Dying(Path("a"), "a", np.stack([noise(i) for i in range(8)]), [0] * 8, ["a"])
    data = ImageSet("a", StreamedImages(dying, 32), torch.zeros(8).long(), ["a"], "hash")
    streamed = ImageStream(data, seed=0, flip=True, device=CPU, workers=1)
    with pytest.raises(OSError, match="--data a: a worker process died .* --workers 0 does without them") as error:
        streamed.batch(0, 4)
    assert "\n" not in str(error.value)
    assert streamed_images.count_workers() >= 1


def test_another_process_opens_the_same_source(source: Path) -> None:
    opened = open_source(source)
    again = pickle.loads(pickle.dumps(opened))
    assert again.identity == opened.identity and again.labels.tolist() == opened.labels.tolist()
    for item in range(0, COUNT, 7):
        assert np.array_equal(again.decode(item, 32), opened.decode(item, 32))


def test_a_training_on_streamed_images_is_the_training_on_images_in_memory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "STATISTICS_BATCHES", 2)
    config = GanConfig(
        data=str(source),
        out=tmp_path / "memory",
        images=64,
        batch_size=4,
        discriminator_steps=2,
        generator_width=2,
        discriminator_width=4,
        attention_spectral_norm=False,
        features="none",
        evaluate_every=64,
        device="cpu",
    )
    train(config)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 1000)
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    train(dataclasses.replace(config, out=tmp_path / "streamed"))
    wanted, found = (load_file(tmp_path / name / "weights.safetensors") for name in ("memory", "streamed"))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[key], found[key]) for key in wanted)
