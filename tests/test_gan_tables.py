"""Images in HDF5 and parquet files, as public data sets have them; files that lie get one line."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small_images import encoded, noise, png

from gan.data.batches import ImageStream
from gan.data.datasets import load_image_set, open_source

COUNT = 24
PIXELS = np.stack([noise(i) for i in range(COUNT)])
LABELS = np.arange(COUNT) % 3
CPU = torch.device("cpu")


def write_hdf5(path: Path, *, names: list[str] | None = None, chunks: Any = None, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, content in datasets.items():
            if isinstance(content, list):
                rows = file.create_dataset(key, (len(content),), dtype=h5py.vlen_dtype(np.uint8))
                for place, row in enumerate(content):
                    rows[place] = np.frombuffer(row, dtype=np.uint8)
            elif content is not None:
                file.create_dataset(key, data=content, chunks=chunks if np.ndim(content) == 4 else None)
        if names is not None:
            file["class_names"] = names
    return path


HDF5 = {
    "pixels": {"images": PIXELS, "labels": LABELS},
    "studiogan": {"imgs": PIXELS.transpose(0, 3, 1, 2), "labels": LABELS, "chunks": (16, 3, 32, 32)},
    "encoded": {"images": [png(i) for i in range(COUNT)], "labels": LABELS[:, None].astype(np.uint8)},
}


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_of_pixels_and_of_encoded_images(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    path = write_hdf5(tmp_path / "a.h5", **HDF5[kind])
    data = load_image_set(str(path), 32)
    assert np.array_equal(np.asarray(data.images), PIXELS) and data.labels.tolist() == LABELS.tolist()
    assert data.class_names == ["0", "1", "2"] and data.name == "a.h5"
    named = load_image_set(str(write_hdf5(tmp_path / "b.hdf5", names=["ape", "bee", "cow"], **HDF5[kind])), 32)
    assert named.class_names == ["ape", "bee", "cow"]
    streamed_equals_resident(path)


def streamed_equals_resident(path: Path) -> None:
    """Batches over an epoch's end, from this process and from two workers; and the source opened in another process."""
    wanted, wanted_labels = ImageStream(load_image_set(str(path), 32), seed=1, flip=True, device=CPU).batch(17, 20)
    for workers in (0, 2):
        data = load_image_set(str(path), 32, stream="always")
        stream = ImageStream(data, seed=1, flip=True, device=CPU, workers=workers)
        parts = [stream.batch(17 + start, 10) for start in (0, 10)]
        stream.close()
        assert torch.equal(torch.cat([images for images, _ in parts]), wanted)
        assert torch.equal(torch.cat([labels for _, labels in parts]), wanted_labels)
    source = open_source(path)
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.decode(5, 32), source.decode(5, 32)) and again.identity == source.identity


def test_hdf5_images_of_another_size_are_cut_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((3, 20, 64, 3), dtype=np.uint8)
    wide[:, :, 22:42] = (0, 0, 255)
    path = write_hdf5(tmp_path / "a.h5", images=wide, labels=np.arange(3))
    images = np.asarray(load_image_set(str(path), 32).images)
    assert (images[:, :, 4:-4] == (0, 0, 255)).all()  # the filter reaches beyond the square at its edges


@pytest.mark.parametrize(
    "content, message",
    [
        ({"images": PIXELS}, "holds images; expected"),
        ({"labels": LABELS}, "holds labels; expected"),
        ({"images": PIXELS, "labels": LABELS[:-1]}, r"labels is int64 \(23,\), expected integers \(24,\)"),
        ({"images": PIXELS, "labels": LABELS * 1.0}, "labels is float64"),
        ({"images": PIXELS, "labels": LABELS - 1}, "a label is -1, expected 0 or more"),
        ({"images": PIXELS, "labels": LABELS, "names": ["a", "b"]}, "a label is 2, but 2 classes are named"),
        ({"images": PIXELS, "labels": LABELS * 10**8}, "a label is 200000000, but there are 24 images and no class"),
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, r"images is float32 \(24, 32, 32, 3\); expected"),
        ({"images": PIXELS[..., :2], "labels": LABELS}, r"images is uint8 \(24, 32, 32, 2\); expected"),
        ({"images": np.array([b"abc"] * COUNT, dtype="S3"), "labels": LABELS}, "images is |S3 .*expected"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "holds no images"),
    ],
)
def test_hdf5_files_that_lie(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", **content)
    with pytest.raises(ValueError, match=message) as error:
        load_image_set(str(path), 32)
    assert str(error.value).startswith(f"--data {path}: ") and "\n" not in str(error.value)


def test_hdf5_that_claims_what_it_does_not_hold_or_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (10**9, 128, 128, 3), dtype=np.uint8, chunks=(1, 128, 128, 3))
        file.create_dataset("labels", (10**9,), dtype=np.int64, chunks=(1000,))
    with pytest.raises(ValueError, match="but nothing is stored in it"):
        load_image_set(str(path), 32)
    strings = tmp_path / "b.h5"
    with h5py.File(strings, "w") as file:
        file.create_dataset("images", data=["object", "array"], dtype=h5py.string_dtype())
        file["labels"] = [0, 1]
    with pytest.raises(ValueError, match=r"images is object \(2,\); expected"):
        load_image_set(str(strings), 32)
    cut = tmp_path / "c.h5"
    cut.write_bytes(write_hdf5(tmp_path / "whole.h5", **HDF5["pixels"]).read_bytes()[:3000])
    for file in (cut, tmp_path / "text.h5"):
        if not file.exists():
            file.write_text("no such format")
        with pytest.raises(ValueError, match="not a readable HDF5 file") as error:
            load_image_set(str(file), 32)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="an HDF5 file is one split"):
        load_image_set(str(path), 32, split="test")


def write_parquet(
    path: Path,
    contents: list[bytes | None],
    labels: Any,
    *,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    binary: bool = False,
    group: int = 5,
) -> Path:
    """As the datasets library writes it: a struct {bytes, path}, and what the columns mean in the schema's metadata."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    rows: list[Any] = contents if binary else [{"bytes": content, "path": None} for content in contents]
    kind = arrow.binary() if binary else arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    table = arrow.table({columns[0]: arrow.array(rows, kind), columns[1]: arrow.array(labels)})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table, path, row_group_size=group)
    return path


def test_parquet_shards_with_the_names_of_their_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    folder, names = tmp_path / "cifar", ["ape", "bee", "cow"]
    contents: list[bytes | None] = [png(i) for i in range(COUNT)]
    cuts = ((0, 11), (11, 12), (12, COUNT))
    for place, (start, stop) in enumerate(cuts):
        shard = folder / "data" / f"train-{place:05d}-of-00003-{place:016x}.parquet"
        write_parquet(shard, contents[start:stop], LABELS[start:stop], names=names)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [png(50), png(51)], [2, 0], names=names)
    data = load_image_set(str(folder), 32)
    assert np.array_equal(np.asarray(data.images), PIXELS) and data.labels.tolist() == LABELS.tolist()
    assert data.class_names == names and data.name == "cifar"
    test = load_image_set(str(folder), 32, split="test")
    assert test.name == "cifar-test" and np.array_equal(np.asarray(test.images), [noise(50), noise(51)])
    streamed_equals_resident(folder)
    assert open_source(folder).describe(12) == f"train-00002-of-00003-{2:016x}.parquet row 0"
    (folder / "data" / f"train-00001-of-00003-{1:016x}.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00003.parquet is missing, 2 of 3 shards are there"):
        load_image_set(str(folder), 32)


@pytest.mark.parametrize("binary", [False, True])
def test_one_parquet_file_of_fine_labels_without_names(binary: bool, tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00002.parquet"  # one shard, asked for by its name
    columns = ("img", "fine_label")
    write_parquet(path, [png(i) for i in range(COUNT)], LABELS.astype(np.uint8), columns=columns, binary=binary)
    data = load_image_set(str(path), 32)
    assert data.class_names == ["0", "1", "2"] and np.array_equal(np.asarray(data.images), PIXELS)


def test_damaged_and_missing_images_in_parquet_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    contents: list[bytes | None] = [png(i) for i in range(60)]
    contents[7], contents[40] = None, png(40)[:100]
    path = write_parquet(tmp_path / "a.parquet", contents, np.arange(60) % 3)
    data = load_image_set(str(path), 32)
    assert len(data.labels) == 58 and data.skipped[0] == "a.parquet row 7: its bytes are not in the file"
    assert data.skipped[1].startswith("a.parquet row 40: ")
    streamed_equals_resident(path)


def test_parquet_files_that_lie(tmp_path: Path) -> None:
    contents: list[bytes | None] = [png(i) for i in range(4)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"columns": ("picture", "label")}, "has the columns picture, label; expected image"),
        ({"columns": ("image", "class")}, "has the columns image, class; expected image"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "column label is double; expected"),
        ({"labels": [0, None, 1, 1]}, "has 1 rows without a label"),
        ({"labels": [0, -1, 1, 1]}, "a label is -1"),
        ({"labels": [0, 3, 1, 1], "names": ["a", "b"]}, "a label is 3, but 2 classes are named"),
    ]
    for place, (changes, message) in enumerate(cases):
        path = write_parquet(tmp_path / f"{place}.parquet", contents, **{"labels": [0, 1, 0, 1], **changes})
        with pytest.raises(ValueError, match=message) as error:
            load_image_set(str(path), 32)
        assert str(error.value).startswith(f"--data {path}: ") and "\n" not in str(error.value)
    whole = write_parquet(tmp_path / "whole.parquet", contents, [0, 1, 0, 1])
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut.parquet is not a readable parquet file") as error:
        load_image_set(str(tmp_path / "cut.parquet"), 32)
    assert "\n" not in str(error.value)
    spoilt = bytearray(whole.read_bytes())
    spoilt[100:8000] = bytes(7900)
    (tmp_path / "spoilt.parquet").write_bytes(spoilt)
    with pytest.raises(ValueError, match="of 4 images cannot be read"):
        load_image_set(str(tmp_path / "spoilt.parquet"), 32)
    folder = tmp_path / "only"
    write_parquet(folder / "validation-00000-of-00001.parquet", contents, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="holds no parquet file of the train split"):
        load_image_set(str(folder), 32)
    assert load_image_set(str(folder), 32, split="test").name == "only-validation"


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"parquet files need pyarrow: pip install 'eagan-eat\[parquet\]'"):
        load_image_set(str(tmp_path / "a.parquet"), 32)


def test_grey_and_alpha_inside_hdf5_follow_the_rules_of_files(tmp_path: Path) -> None:
    grey = encoded(Image.fromarray(noise(0)[:, :, 0]))
    clear = io.BytesIO()
    Image.new("RGBA", (20, 20), (10, 20, 30, 0)).save(clear, "PNG")
    path = write_hdf5(tmp_path / "a.h5", images=[grey, clear.getvalue()], labels=np.arange(2))
    images = np.asarray(load_image_set(str(path), 32).images)
    assert np.array_equal(images[0], np.repeat(noise(0)[:, :, :1], 3, axis=2)) and (images[1] == 255).all()
