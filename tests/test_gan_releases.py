"""CIFAR-10, CIFAR-100 and Tiny-ImageNet as they are released: small ones in the same layout."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_images import noise, png, write
from torchvision.datasets import CIFAR10, CIFAR100

from gan.data.datasets import load_image_set
from gan.data.releases import ARCHIVES, prepare_images
from shared_attn.runtime import download

CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
NAMES = {"cifar10": ["cat", "dog", "frog"], "cifar100": ["apple", "bear", "crab"]}


def batch(name: str, first: int, count: int) -> dict[str, Any]:
    """Images `noise(first)` ... as CIFAR's batches hold them: rows of 3,072, channels first."""
    pixels = np.stack([noise(first + i).transpose(2, 0, 1).reshape(-1) for i in range(count)])
    labels = [(first + i) % 3 for i in range(count)]
    if name == "cifar10":
        return {"batch_label": "b", "labels": labels, "data": pixels, "filenames": [f"{i}.png" for i in range(count)]}
    return {"fine_labels": labels, "coarse_labels": [0] * count, "data": pixels, "filenames": ["a"] * count}


@pytest.fixture(params=list(CIFAR))
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, Path]:
    """name, folder and .tar.gz of a small release, which torchvision's tables take for the published one."""
    name: str = request.param
    release: Any = CIFAR[name]
    folder = tmp_path / "release" / ARCHIVES[name].folder
    folder.mkdir(parents=True)

    def dump(file: str, content: dict[str, Any]) -> str:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    train = [[file, dump(file, batch(name, 2 * place, 2))] for place, (file, _) in enumerate(release.train_list)]
    test = [[release.test_list[0][0], dump(release.test_list[0][0], batch(name, 100, 3))]]
    meta = {**release.meta, "md5": dump(release.meta["filename"], {release.meta["key"]: NAMES[name]})}
    packed = tmp_path / "release" / ARCHIVES[name].file
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, folder.name)
    for key, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(release, key, value)
    monkeypatch.setattr(release, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    return name, folder, packed


def test_cifar_from_its_folder_its_archive_and_its_name(
    cifar: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder, packed = cifar
    count = 10 if name == "cifar10" else 2
    (tmp_path / "data").mkdir()
    shutil.copy(packed, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "around" / folder.name)
    hashes = set()
    for path in (str(folder), str(tmp_path / "around"), str(packed), name):
        data = load_image_set(path, 32)
        assert data.name == f"{name}-train" and data.class_names == NAMES[name]
        assert np.array_equal(np.asarray(data.images), [noise(i) for i in range(count)])
        assert data.labels.tolist() == [i % 3 for i in range(count)]
        hashes.add(data.hash)
        test = load_image_set(path, 32, split="test")
        assert test.name == f"{name}-test" and np.array_equal(test.images[0].numpy(), noise(100))
        assert test.labels.tolist() == [1, 2, 0]
    assert len(hashes) == 1
    assert load_image_set(f"{name}-test", 32).hash == test.hash
    assert not [path for path in (tmp_path / "data").iterdir() if path.name != packed.name]  # nothing was unpacked


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_changed_pickle_is_never_loaded(cifar: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, folder, packed = cifar
    file = CIFAR[name].train_list[0][0]
    (folder / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=f"{file} is not the published one: its MD5 is"):
        load_image_set(str(folder), 32)
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, folder.name)
    with pytest.raises(ValueError, match=r"its MD5 is .*, which is neither cifar-10-python.tar.gz nor"):
        load_image_set(str(packed), 32)
    assert not (tmp_path / "sprung").exists()
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"lacks {file}"):
        load_image_set(str(folder), 32)


def test_a_link_in_the_archive_is_not_followed(
    cifar: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder, packed = cifar
    file = CIFAR[name].train_list[0][0]
    outside = tmp_path / "outside"
    outside.write_bytes((folder / file).read_bytes())
    with tarfile.open(packed, "w:gz") as tar:
        for path in folder.iterdir():
            if path.name != file:
                tar.add(path, f"{folder.name}/{path.name}")
        link = tarfile.TarInfo(f"{folder.name}/{file}")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
    monkeypatch.setattr(CIFAR[name], "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=f"lacks {file}"):
        load_image_set(str(packed), 32)


WORDS = {"n02": "tabby, tabby cat", "n01": "goldfish, Carassius auratus", "n03": "tabby"}


def tiny_imagenet(annotations: dict[str, str]) -> dict[str, bytes]:
    files = {
        f"train/{wnid}/images/{wnid}_{i}.JPEG": png(10 * place + i)  # the decoder goes by content
        for place, wnid in enumerate(WORDS)
        for i in range(2)
    }
    files |= {f"train/{wnid}/{wnid}_boxes.txt": b"" for wnid in WORDS}
    files |= {f"val/images/val_{i}.JPEG": png(50 + i) for i in range(3)}
    files |= {f"test/images/test_{i}.JPEG": png(70 + i) for i in range(2)}
    lines = "".join(f"{name}\t{wnid}\t0\t0\t62\t62\n" for name, wnid in annotations.items())
    return files | {
        "words.txt": "".join(f"{wnid}\t{words}\n" for wnid, words in {**WORDS, "n99": "entity"}.items()).encode(),
        "wnids.txt": "\n".join(WORDS).encode(),
        "val/val_annotations.txt": lines.encode(),
    }


ANNOTATIONS = {"val_0.JPEG": "n03", "val_1.JPEG": "n01", "val_2.JPEG": "n02"}


@pytest.mark.parametrize("source", ["tiny-imagenet-200.zip", "tiny-imagenet-200", "around"])
def test_tiny_imagenet_as_it_is_released(source: str, tmp_path: Path) -> None:
    top = "" if source == "tiny-imagenet-200" else "tiny-imagenet-200/"
    write(tmp_path / source, {top + name: content for name, content in tiny_imagenet(ANNOTATIONS).items()})
    data = load_image_set(str(tmp_path / source), 32)
    assert data.name == "tiny-imagenet-train"
    assert data.class_names == ["goldfish", "tabby (1)", "tabby (2)"] and data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(np.asarray(data.images), [noise(i) for i in (10, 11, 0, 1, 20, 21)])
    test = load_image_set(str(tmp_path / source), 32, split="test")
    assert test.name == "tiny-imagenet-val" and test.class_names == data.class_names
    assert test.labels.tolist() == [0, 1, 2] and np.array_equal(test.images[2].numpy(), noise(50))


def test_tiny_imagenet_that_is_not_whole(tmp_path: Path) -> None:
    few = dict(list(ANNOTATIONS.items())[:2])
    cases = (
        (few, (), "images/val_2.JPEG is not in val_annotations.txt"),
        ({**few, "val_2.JPEG": "n77"}, (), "n77 of val/images/val_2.JPEG is not in wnids.txt"),
        (ANNOTATIONS, ("val/val_annotations.txt",), "lacks val/val_annotations.txt"),
    )
    for place, (listed, lacking, message) in enumerate(cases):
        files = {name: content for name, content in tiny_imagenet(listed).items() if name not in lacking}
        path = write(tmp_path / f"{place}.zip", files)
        with pytest.raises(ValueError, match=message) as error:
            load_image_set(str(path), 32, split="test")
        assert str(error.value).startswith(f"--data {path}: ") and "\n" not in str(error.value)


def test_prepare_downloads_checks_and_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny-imagenet-200/words.txt", "n01\tgoldfish")
    served = buffer.getvalue()
    monkeypatch.setattr(download, "_transfer", lambda _url, part: part.write_bytes(served))
    sha256 = hashlib.sha256(served).hexdigest()
    path = prepare_images("tiny-imagenet", tmp_path, url="http://here/a.zip", sha256=sha256)
    assert path == tmp_path / "tiny-imagenet-200.zip" and path.read_bytes() == served
    with pytest.raises(ValueError, match=r"tiny-imagenet-200.zip: its SHA-256 is .*; remove it to download it anew"):
        prepare_images("tiny-imagenet", tmp_path)  # which is not the published one
    with pytest.raises(ValueError, match=r"could not be downloaded from .*; put cifar-10-python.tar.gz, or") as error:
        prepare_images("cifar10", tmp_path / "new")
    assert all(url in str(error.value) for url in ARCHIVES["cifar10"].urls)
    (tmp_path / "tiny-imagenet-200").mkdir()
    assert prepare_images("tiny-imagenet", tmp_path) == tmp_path / "tiny-imagenet-200"


def test_the_script_refuses_flags_of_point_sets(run_script: Callable[..., Any], tmp_path: Path) -> None:
    done = run_script("prepare_data.py", "cifar10", "--out", tmp_path, "--num-points", 64)
    assert done.returncode == 2 and done.stderr.startswith("error: --num-points: cifar10 is not converted")
    done = run_script("prepare_data.py", "cifar100", "--out", tmp_path, "--url", (tmp_path / "no").as_uri())
    assert done.returncode == 2 and "put cifar-100-python.tar.gz" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
