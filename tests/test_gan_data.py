"""Images from folders, zips and names; damaged files; the stream's order."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import encoded, noise, png, write

import shared_attn.shapes
from gan.data import datasets
from gan.data import decoded as decoded_images
from gan.data.batches import ImageStream
from gan.data.datasets import DATASETS, ImageSet, load_image_set
from gan.data.decoding import decode_image
from shared_attn.runtime import download

CPU = torch.device("cpu")


FILES = {"dog/1.png": png(1), "cat/10.png": png(2), "cat/09.png": png(3), "cat/notes.txt": b"no image"}


@pytest.mark.parametrize("source", ["images.zip", "images"])
@pytest.mark.parametrize("prefix", ["", "top/", "top/train/"])
def test_folder_and_zip_give_the_same_sorted_images(tmp_path: Path, source: str, prefix: str) -> None:
    files = {prefix + name: content for name, content in FILES.items()}
    files |= {"__MACOSX/cat/._09.png": b"x", prefix + ".hidden/1.png": png(9)}
    data = load_image_set(str(write(tmp_path / source, files)), 32)
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 0, 1]
    expected = np.stack([noise(3), noise(2), noise(1)])
    assert data.images.dtype == torch.uint8 and np.array_equal(data.images.numpy(), expected)
    assert data.describe()["images"] == 3 and not data.skipped
    plain = load_image_set(str(write(tmp_path / "plain", FILES)), 32)
    assert data.hash == plain.hash


def test_the_train_folder_is_taken_alone(tmp_path: Path) -> None:
    files = {f"tiny/{split}/{name}": content for split in ("train", "val") for name, content in FILES.items()}
    data = load_image_set(str(write(tmp_path / "tiny.zip", files)), 32)
    assert data.class_names == ["cat", "dog"] and len(data.labels) == 3


def test_the_test_split_is_test_or_else_val_numbered_as_train(tmp_path: Path) -> None:
    files = {f"train/{name}/1.png": png(1) for name in ("ape", "cat", "dog")}
    source = write(tmp_path / "val.zip", files | {"val/dog/1.png": png(2), "val/cat/1.png": png(3)})
    data = load_image_set(str(source), 32, split="test")
    assert data.name == "val.zip-val" and data.class_names == ["ape", "cat", "dog"] and data.labels.tolist() == [1, 2]
    assert np.array_equal(data.images[0].numpy(), noise(3))
    both = write(tmp_path / "both", files | {"val/dog/1.png": png(2), "test/ape/1.png": png(4)})
    data = load_image_set(str(both), 32, split="test")
    assert data.name == "both-test" and data.labels.tolist() == [0]
    for name, more, message in (
        ("odd.zip", {"val/fox/1.png": png(2), "val/cat/1.png": png(1)}, "val has a class fox that train lacks"),
        ("one.zip", {}, "is one split alone, expected folders train and test or val"),
    ):
        path = write(tmp_path / name, files | more)
        with pytest.raises(ValueError, match=message):
            load_image_set(str(path), 32, split="test")
    with pytest.raises(ValueError, match="--split tset: expected train or test"):
        load_image_set(str(both), 32, split="tset")


def test_images_without_class_folders_make_one_class(tmp_path: Path) -> None:
    loose = {"1.png": png(1), "2.png": png(2)}
    assert load_image_set(str(write(tmp_path / "loose.zip", loose)), 32).class_names == ["loose"]
    inside = {f"cat/{name}": content for name, content in loose.items()}
    assert load_image_set(str(write(tmp_path / "inside", inside)), 32).class_names == ["cat"]
    with pytest.raises(ValueError, match=r"1.png lies beside the class folders"):
        load_image_set(str(write(tmp_path / "mixed.zip", {"1.png": png(1), "cat/2.png": png(2)})), 32)


def test_a_link_back_to_the_folder_is_walked_once(tmp_path: Path) -> None:
    source = write(tmp_path / "images", FILES)
    (source / "cat" / "again").symlink_to(source, target_is_directory=True)
    assert len(load_image_set(str(source), 32).labels) == 3


def test_hash_changes_with_pixels_labels_and_names(tmp_path: Path) -> None:
    variants = [
        FILES,
        {**FILES, "dog/1.png": png(5)},
        {"dog/1.png": png(1), "dog/10.png": png(2), "cat/09.png": png(3)},
        {name.replace("dog", "fox"): content for name, content in FILES.items()},
    ]
    hashes = {load_image_set(str(write(tmp_path / f"{i}.zip", files)), 32).hash for i, files in enumerate(variants)}
    assert len(hashes) == len(variants)


def decode(image: Image.Image, size: int = 32, kind: str = "PNG") -> np.ndarray:
    return decode_image(encoded(image, kind), size)


def test_grey_and_palette_and_16_bit_become_colour() -> None:
    grey = noise(0)[:, :, 0]
    assert np.array_equal(decode(Image.fromarray(grey)), np.repeat(grey[:, :, None], 3, axis=2))
    palette = Image.fromarray(noise(1)).quantize(8)
    assert np.array_equal(decode(palette), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(decode(deep), np.repeat(grey[:, :, None], 3, axis=2))


def test_cmyk_and_animations_and_floats() -> None:
    tile = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = decode(tile, kind="JPEG")
    assert red[..., 0].min() > 240 and red[..., 1:].max() < 15
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert (decode_image(buffer.getvalue(), 32) == (255, 0, 0)).all()
    with pytest.raises(ValueError, match="floating-point pixels"):
        decode(Image.fromarray(np.ones((32, 32), dtype=np.float32)), kind="TIFF")


def test_transparent_pixels_lie_over_white() -> None:
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[:16] = (200, 100, 0, 255)
    pixels[16:24, :, 3] = 128  # half transparent black
    out = decode(Image.fromarray(pixels))
    assert (out[:16] == (200, 100, 0)).all() and (out[24:] == 255).all()
    assert np.abs(out[16:24].astype(int) - 127).max() <= 1


def test_other_sizes_are_cropped_to_the_centred_square_and_resized() -> None:
    wide = np.zeros((16, 40, 3), dtype=np.uint8)
    wide[:, :12], wide[:, 28:] = (255, 0, 0), (255, 0, 0)  # outside the centred square of 16 x 16
    wide[:, 12:28] = (0, 0, 255)
    assert (decode(Image.fromarray(wide), 16) == (0, 0, 255)).all()
    assert decode(Image.fromarray(noise(0, 70)), 32).shape == (32, 32, 3)


def test_exif_orientation_is_applied() -> None:
    image = Image.fromarray(noise(0))
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert np.array_equal(decode_image(buffer.getvalue(), 32), noise(0)[::-1, ::-1])


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = png(0)
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


def test_damaged_images_are_listed_and_skipped(tmp_path: Path) -> None:
    files = {f"{name}/{i:02}.png": png(i) for i in range(30) for name in ("cat", "dog")}
    files |= {"cat/03.png": png(3)[:200], "cat/11.png": b"", "dog/29.png": bomb()}
    data = load_image_set(str(write(tmp_path / "some.zip", files)), 32)
    assert [line.split(":")[0] for line in data.skipped] == ["cat/03.png", "cat/11.png", "dog/29.png"]
    assert len(data.labels) == 57 == len(data.images)
    remaining = sorted((i, name) for name in (0, 1) for i in range(30) if (i, name) not in {(3, 0), (11, 0), (29, 1)})
    seeds = {noise(i).tobytes(): i for i in range(30)}
    found = [seeds[image.numpy().tobytes()] for image in data.images]
    assert sorted(zip(found, data.labels.tolist(), strict=True)) == remaining


def test_too_much_damage_and_bad_sources_are_refused_in_one_line(tmp_path: Path) -> None:
    damaged = {f"cat/{i}.png": png(i) if i else b"x" for i in range(3)} | {"cat/5.png": b"x"}
    cases = {
        "damaged.zip": (damaged, r"2 of 4 images cannot be read, first cat/0.png"),
        "empty.zip": ({"cat/readme.txt": b"x"}, r"holds no images"),
        "empty": ({"cat/readme.txt": b"x"}, r"holds no images"),
    }
    for name, (files, message) in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_image_set(str(write(tmp_path / name, files)), 32)
        assert "--data" in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        load_image_set(str(tmp_path / "text.zip"), 32)
    with pytest.raises(FileNotFoundError, match="--data nowhere: no such file or folder"):
        load_image_set("nowhere", 32)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "locked.zip", {"cat/1.png": png(1)})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of the central directory
    path.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        load_image_set(str(path), 32)


def test_large_sets_are_mapped_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    files = {f"cat/{i:02}.png": png(i) for i in range(40)} | {"cat/07.png": b"x"}
    source = write(tmp_path / "big.zip", files)
    in_memory = load_image_set(str(source), 32)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 1000)
    mapped = load_image_set(str(source), 32, stream="never")
    assert torch.equal(mapped.images, in_memory.images) and torch.equal(mapped.labels, in_memory.labels)
    assert mapped.skipped == in_memory.skipped and len(mapped.skipped) == 1

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoded_images, "_fill", fail)
    again = load_image_set(str(source), 32)
    assert torch.equal(again.images, in_memory.images) and again.hash == mapped.hash


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_named_set_loads_or_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "shapes":
        few = functools.partial(shared_attn.shapes.load_images, per_class=2)
        monkeypatch.setattr(shared_attn.shapes, "load_images", few)
        data = load_image_set(name, 32)
        assert len(data.class_names) >= 12 and data.images.shape[1:] == (32, 32, 3)
        assert data.labels.max() == len(data.class_names) - 1
        return

    def offline(url: str, _part: Path) -> None:
        raise download.Unusable(f"no route to {url.split('/')[2]}")

    monkeypatch.setattr(download, "_transfer", offline)
    with pytest.raises((ValueError, OSError), match=f"--data {name}") as error:
        load_image_set(name, 32)
    assert "put " in str(error.value) and "\n" not in str(error.value)
    write(tmp_path / "data" / name, FILES)
    assert load_image_set(name, 32).class_names == ["cat", "dog"]


def counted(count: int) -> ImageSet:
    """Image i has pixels i on its left half and 0 on its right one."""
    images = torch.zeros(count, 32, 32, 3, dtype=torch.uint8)
    images[:, :, :16] = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None]
    return ImageSet("counted", images, torch.arange(count), [str(i) for i in range(count)], "hash")


def test_the_stream_depends_on_seed_and_position_alone() -> None:
    stream = ImageStream(counted(10), seed=1, flip=True, device=CPU)
    images, labels = stream.batch(0, 30)
    for start, count in ((17, 5), (3, 2), (8, 4), (0, 30)):  # any order, any batch size, across epochs
        again, again_labels = stream.batch(start, count)
        assert torch.equal(again, images[start : start + count])
        assert torch.equal(again_labels, labels[start : start + count])
    epochs = labels.view(3, 10)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(ImageStream(counted(10), seed=2, flip=True, device=CPU).batch(0, 10)[1], labels[:10])


def test_the_stream_scales_mirrors_and_keeps_the_stored_images() -> None:
    data = counted(40)
    stored = data.images.clone()
    images, labels = ImageStream(data, seed=0, flip=True, device=CPU).batch(0, 400)
    left = (labels + 1).float() / 127.5 - 1
    mirrored = images[:, 0, 0, 0] == -1
    assert torch.equal(torch.where(mirrored, images[:, 1, 5, -1], images[:, 1, 5, 0]), left)
    assert 150 < int(mirrored.sum()) < 250
    first = mirrored[labels == 7]
    assert bool(first.any()) and not bool(first.all())  # drawn anew each epoch
    assert torch.equal(data.images, stored)
    upright, _ = ImageStream(data, seed=0, flip=False, device=CPU).batch(0, 400)
    assert not (upright[:, 0, 0, 0] == -1).any()


def test_real_images_in_a_zip(shared_data: Path) -> None:
    data = load_image_set(str(shared_data / "cifar10-test.zip"), 32)
    assert data.images.shape == (10_000, 32, 32, 3) and data.labels.bincount().tolist() == [1000] * 10
    assert data.class_names[:3] == ["airplane", "automobile", "bird"] and not data.skipped
