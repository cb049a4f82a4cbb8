"""Every reader of a file that a user may supply: how it is called, and small files that it accepts.

A reader takes a path and either returns or refuses: a ValueError or an OSError whose words are one line.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import release_files
import small_models
import torch
from PIL import Image
from small_images import encoded, noise, write

from gan.data.datasets import open_source
from gan.data.files import open_files
from gan.generator import Generator
from gan.judging.classifier import Classifier
from gan.judging.classifier_training import load_classifier
from gan.judging.inception_weights import read_inception_weights
from gan.judging.statistics_files import load_statistics
from gan.sampling import load_generator
from pointcloud.clouds import CloudSet, read_clouds_file, write_clouds_file
from pointcloud.files.meshes import read_shape
from pointcloud.models import load_model
from pointcloud.releases.file_source import FileSource
from pointcloud.releases.readable import recognise
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.results import read_record
from shared_attn.runtime.run_folder import read_config
from shared_attn.runtime.weights import save_weights

POINTS = 16  # drawn of each shape


@dataclass(frozen=True)
class Reader:
    """read: what takes the path. name: of the file, in a folder of its own. seeds: contents that are accepted.
    share: of the inputs of a run, relative to others."""

    read: Callable[[Path], Any]
    name: str
    seeds: Callable[[], list[bytes]]
    share: float = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", cache(self.seeds))  # the same whenever they are asked for


def _mesh(suffix: str) -> Callable[[], list[bytes]]:
    def make() -> list[bytes]:
        import trimesh

        with tempfile.TemporaryDirectory() as folder:
            found = [small_models.write_box(Path(folder, f"box.{suffix}")).read_bytes()]
        box = trimesh.Trimesh(small_models.VERTICES, small_models.FACES, process=False)
        if suffix == "ply":
            found += [
                box.export(file_type="ply", encoding="ascii"),
                trimesh.PointCloud(box.vertices).export(None, "ply"),
            ]
        if suffix == "stl":
            found.append(box.export(file_type="stl_ascii").encode())
        if suffix == "obj":
            found.append(
                b"mtllib a.mtl\no b\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvn 0 0 1\nvt 0 0\nf 1/1/1 2/1/1 3/1/1 4/1/1\n"
            )
        if suffix == "gltf":
            found = [make_gltf()]
        return found

    return make


def make_gltf(change: Callable[[dict[str, Any]], object] = lambda _tree: None) -> bytes:
    """One triangle in a node under a node, in one file; `change` may spoil its description."""
    import base64

    numbers = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes() + np.arange(3, dtype="<u2").tobytes()
    tree: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 42, "uri": "data:;base64," + base64.b64encode(numbers).decode()}],
        "bufferViews": [
            {"buffer": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"children": [1]}, {"mesh": 0, "translation": [1, 2, 3]}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    change(tree)
    return json.dumps(tree).encode()


def make_glb(tree: bytes, numbers: bytes = b"") -> bytes:
    chunks = struct.pack("<I4s", len(tree), b"JSON") + tree
    if numbers:
        chunks += struct.pack("<I4s", len(numbers), b"BIN\0") + numbers
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _clouds() -> list[bytes]:
    found = []
    for parts in (None, torch.zeros(2, 9, dtype=torch.uint8)):
        named = {} if parts is None else {"part_names": ["a/x", "b/y"], "part_start": [0, 1], "part_count": [1, 1]}
        label = torch.zeros(2, dtype=torch.long)
        clouds = CloudSet(torch.arange(54).reshape(2, 9, 3).short(), label, ["a", "b"], part_label=parts, **named)
        found.append(_written(lambda path, clouds=clouds: write_clouds_file(path, clouds, ["one", "two"]), "a.npz"))
    return found


def _statistics() -> list[bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(3), sigma=np.eye(3), reference=np.array("train"), count=np.array(9))
    return [buffer.getvalue()]


def _array() -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(20, 3)))
    return [buffer.getvalue()]


@cache
def point_weights() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        small_models.write_small_models(Path(folder))
        return tuple(path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors")))


GENERATOR: dict[str, Any] = {"image_size": 32, "num_classes": 2, "width": 2, "latent_dim": 4, "attention": "external"}


@cache
def generator_weights() -> bytes:
    state = Generator(**{**GENERATOR, "spectral_norm": False}).state_dict()
    header = {"kind": "gan.generator", "model": GENERATOR, "class_names": ["a", "b"]}
    return _written(lambda path: save_weights(path, state, header), "a.safetensors")


def _classifier_weights() -> list[bytes]:
    model = {"num_classes": 2, "widths": [2, 2, 2, 2]}
    header = {"kind": "gan.classifier", "model": model, "class_names": ["a", "b"]}
    return [_written(lambda path: save_weights(path, Classifier(**model).state_dict(), header), "a.safetensors")]


def _pictures() -> list[bytes]:
    image = Image.fromarray(noise(0, 8))
    kinds = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
    found = [encoded(image, kind) for kind in kinds]
    return [*found, encoded(image.convert("RGBA"), "PNG"), encoded(image.convert("P"), "PNG")]


def _image_zip() -> list[bytes]:
    pictures = {f"{'ab'[i % 2]}/{i}.png": encoded(Image.fromarray(noise(i, 8))) for i in range(4)}
    return [_written(lambda path: write(path, pictures), "a.zip")]


def _image_hdf5() -> list[bytes]:
    def encoded_files(path: Path) -> None:
        with h5py.File(path, "w") as file:
            images = file.create_dataset("images", 2, dtype=h5py.vlen_dtype(np.uint8))
            for i in range(2):
                images[i] = np.frombuffer(encoded(Image.fromarray(noise(i, 8))), np.uint8)
            file["labels"], file["class_names"] = np.arange(2), ["a", "b"]

    return [_written(make, "a.h5") for make in (_store_images, encoded_files)]


def _store_images(path: Path) -> None:
    release_files.write_h5(path, images=np.stack([noise(i, 8) for i in range(4)]), labels=np.arange(4) % 2)


def _named_hdf5() -> list[bytes]:
    def named(path: Path) -> None:
        _store_images(path)
        with h5py.File(path, "a") as file:
            file.attrs["class_names"] = ["a", "b"]

    return [_written(named, "a.h5")]


def _parquet() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": encoded(Image.fromarray(noise(i, 8))), "path": None} for i in range(4)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": [0, 1, 0, 1]}), buffer)
    return [buffer.getvalue()]


def _tar() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/batches.meta"), io.BytesIO())
    return [buffer.getvalue()]


def _releases() -> list[bytes]:
    def packed(make: Callable[[Path], None]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder, "release"))
            return release_files.pack(Path(folder, "release"), Path(folder, "a.zip")).read_bytes()

    def parts(root: Path) -> None:
        tokens = {name: [("03001627", name)] for name in ("train", "val", "test")}
        release_files.write_shapenetpart_text(root, tokens, 20)

    def meshes(root: Path) -> None:
        for split in ("train", "test"):
            release_files.write_mesh(root / "bed" / split / f"{split}.off", 3)

    makers = [parts, meshes, lambda root: release_files.write_modelnet_text(root, 20)]
    return [packed(make) for make in (*makers, lambda root: release_files.write_shapenetpart_hdf5(root, 20))]


def _hdf5_clouds() -> list[bytes]:
    arrays = {"data": np.random.default_rng(0).normal(size=(2, 20, 3)).astype("f4"), "label": np.zeros((2, 1), "u1")}
    return [_written(lambda path: release_files.write_h5(path, **arrays), "a.h5")]


def _record() -> list[bytes]:
    record = {name: "x" for name in ("name", "kind", "command", "commit")} | {"seeds": [0], "parameters": 1}
    return [
        json.dumps({**record, "config": {}, "data": {}, "metrics": {"a": 1.0}, "seconds": 1, "machine": {}}).encode()
    ]


def _checkpoint() -> list[bytes]:
    state = {"shown": 5, "model": {"a": torch.zeros(3), "b": [1, "x", None]}}
    return [_written(lambda path: save_checkpoint(path.parent, state), "checkpoint.pt")]


def _inception() -> list[bytes]:
    return [_written(lambda path: torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, path), "a.pth")]


def _written(save: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, name))
        return Path(folder, name).read_bytes()


def read_images(path: Path) -> None:
    """What a source holds, every image decoded; a damaged one raises, as it would where all are."""
    source = open_files(path) if path.is_dir() else open_source(path)
    for item in range(min(8, len(source.labels))):
        if isinstance(found := source.decode(item, 32), str):
            raise ValueError(f"{path}: {source.describe(item)}: {found}")


def read_release(path: Path) -> None:
    with FileSource(path) as source:
        if (release := recognise(source)) is None:
            raise ValueError(f"{path}: no release")
        release.read(source, "train", dataset="", num_points=POINTS, seed=0, workers=1)


def read_hdf5_clouds(path: Path) -> None:
    (path.parent / "shape_names.txt").write_text("a\nb\n")
    read_release(path.parent)


def read_mesh(path: Path) -> None:
    read_shape(path).sample(POINTS, seed=0)


READERS: dict[str, Reader] = {
    "off": Reader(read_mesh, "a.off", _mesh("off"), 4),
    "obj": Reader(read_mesh, "a.obj", _mesh("obj"), 4),
    "ply": Reader(read_mesh, "a.ply", _mesh("ply"), 4),
    "stl": Reader(read_mesh, "a.stl", _mesh("stl"), 4),
    "glb": Reader(read_mesh, "a.glb", _mesh("glb"), 4),
    "gltf": Reader(read_mesh, "a.gltf", _mesh("gltf"), 4),
    "text cloud": Reader(read_mesh, "a.xyz", lambda: [b"3\nx y z\n0 0 0\n1,2,3 # c\n4;5;6;7\n", b"1 2 3\n4 5 6\n"], 4),
    "npy": Reader(read_mesh, "a.npy", _array, 4),
    "clouds npz": Reader(read_clouds_file, "a.npz", _clouds, 4),
    "clouds hdf5": Reader(read_hdf5_clouds, "ply_data_train0.h5", _hdf5_clouds, 2),
    "cloud releases": Reader(read_release, "a.zip", _releases, 1),
    "point weights": Reader(load_model, "a.safetensors", lambda: list(point_weights())),
    "generator weights": Reader(load_generator, "a.safetensors", lambda: [generator_weights()]),
    "classifier weights": Reader(
        lambda path: load_classifier(path, torch.device("cpu")), "a.safetensors", _classifier_weights
    ),
    "inception weights": Reader(read_inception_weights, "a.pth", _inception),
    "checkpoint": Reader(lambda path: load_checkpoint(path.parent), "checkpoint.pt", _checkpoint),
    "images": Reader(lambda path: read_images(path.parents[1]), "a/0.png", _pictures, 4),
    "image zip": Reader(read_images, "a.zip", _image_zip, 4),
    "image hdf5": Reader(read_images, "a.h5", _image_hdf5, 2),
    "image hdf5 attribute": Reader(read_images, "a.h5", _named_hdf5, 0.05),  # starts a process for each
    "image parquet": Reader(read_images, "a.parquet", _parquet, 2),
    "cifar tar": Reader(read_images, "a.tar.gz", _tar, 1),
    "statistics npz": Reader(load_statistics, "a.npz", _statistics, 4),
    "record": Reader(read_record, "a.json", _record, 4),
    "configuration": Reader(lambda path: read_config(path.parent), "config.json", lambda: [b'{"a": 1}']),
}
