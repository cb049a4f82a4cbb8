"""A corpus of bad files, each with what its refusal says: `BAD` maps a reader to {what: (content, words)}."""

from __future__ import annotations

import io
import json
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from reader_table import GENERATOR, generator_weights, make_glb, make_gltf, point_weights
from small_images import png

from shared_attn.runtime.results import FIELDS

BILLION = 10**9


class Trap:
    """Where it is unpickled, a file called `sprung` appears."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("a/0.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def zip_bomb(name: str, size: int = 2**29, head: bytes = b"") -> bytes:
    """An entry of zeros that unpacks to `size` bytes, made without making them."""
    packer, crc, packed = zlib.compressobj(9, zlib.DEFLATED, -15), zlib.crc32(head), b""
    packed += packer.compress(head)
    for _ in range(0, size - len(head), 2**20):
        block = bytes(min(2**20, size - len(head)))
        packed, crc = packed + packer.compress(block), zlib.crc32(block, crc)
    packed += packer.flush()
    fields = (0, 0x21, crc, len(packed), size, len(name), 0)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, *fields) + name.encode() + packed
    central = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, *fields, 0, 0, 0, 0, 0) + name.encode()
    return local + central + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


def npy(shape: tuple[int, ...], dtype: str, numbers: bytes = b"\0" * 54) -> bytes:
    """An .npy file that claims a shape, whatever it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + numbers


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    chunks = b""
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return b"\x89PNG\r\n\x1a\n" + chunks


def ply(vertices: int, body: str = "0 0 0\n1 0 0\n0 1 0\n", more: str = "") -> bytes:
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    return f"ply\nformat ascii 1.0\nelement vertex {vertices}\n{axes}{more}end_header\n{body}".encode()


def safetensors(change: Callable[[dict[str, Any]], object], weights: bytes) -> bytes:
    """Weights of this suite with a changed description."""
    (length,) = struct.unpack_from("<Q", weights)
    tree = json.loads(weights[8 : 8 + length])
    described = json.loads(tree["__metadata__"]["eagan-eat"])
    change(described)
    tree["__metadata__"]["eagan-eat"] = json.dumps(described)
    head = json.dumps(tree).encode()
    return struct.pack("<Q", len(head)) + head + weights[8 + length :]


def hdf5(make: Callable[[h5py.File], object]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        make(file)
    return buffer.getvalue()


def _linked(file: h5py.File) -> None:
    file["images"], file["labels"] = h5py.ExternalLink("/etc/passwd", "images"), [0]


def _outside(file: h5py.File) -> None:
    file.create_dataset("images", (1, 8, 8, 3), "u1", external=[("/etc/passwd", 0, 192)])
    file["labels"] = [0]


def _claiming(file: h5py.File) -> None:
    file["images"] = np.zeros((1, 8, 8, 3), "u1")
    file.create_dataset("labels", (BILLION,), "i8", chunks=(1000,))[0] = 1


def _deep(tree: dict[str, Any]) -> None:
    tree["nodes"] = [{"children": [n + 1]} for n in range(999)] + [{"mesh": 0}]


def _accessor(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree["accessors"][0].update(changes)


def _zeros(tree: dict[str, Any]) -> None:
    tree["accessors"].append({"componentType": 5126, "count": BILLION, "type": "VEC3"})


def _viewed(tree: dict[str, Any]) -> None:
    tree["buffers"] = [{"byteLength": 30_000, "uri": "data:;base64," + "A" * 40_000}]
    tree["bufferViews"] = [{"buffer": 0, "byteLength": 30_000}] * 99


def _copied(tree: dict[str, Any]) -> None:
    tree["nodes"] = [{"mesh": 0} for _ in range(5_000)]
    tree["meshes"][0]["primitives"] *= 5_000


GLTF: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another file": (lambda tree: tree["buffers"][0].update(uri="../../secret.bin"), "which is not opened"),
    "an address": (lambda tree: tree["buffers"][0].update(uri="http://localhost/a.bin"), "which is not opened"),
    "a circle": (lambda tree: tree["nodes"][1].update(children=[0]), "go round in a circle"),
    "itself": (lambda tree: tree.update(nodes=[{"children": [0]}]), "go round in a circle"),
    "two parents": (lambda tree: tree["nodes"].append({"children": [1]}), "two parents"),
    "deep": (_deep, "more than 64 deep"),
    "a billion points": (_accessor(count=BILLION), "claims 12,000,000,000 bytes"),
    "a billion zeros": (_zeros, "without data claims"),
    "negative": (_accessor(count=-1), "where a number of 0 or more belongs"),
    "copies": (_copied, "places"),
    "views": (_viewed, "cover"),
}  # fmt: skip
FACES = "element face 1\nproperty list uchar int vertex_indices\n"

BAD: dict[str, dict[str, tuple[bytes, str]]] = {
    "off": {
        "a billion points": (b"OFF\n1000000000 1 0\n0 0 0\n", "claims 1,000,000,000 points"),
        "a billion faces": (b"OFF\n3 1000000000 0\n0 0 0\n1 0 0\n0 1 0\n", "1,000,000,000 faces"),
        "a longer number": (b"OFF\n99999999999999999999 1 0\n0 0 0\n", "are not those of its points"),
        "NaN": (b"OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "NaN or infinite"),
        "infinite": (b"OFF\n3 1 0\n0 0 0\n1e999 0 0\n0 1 0\n3 0 1 2\n", "NaN or infinite"),
        "no area": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "no area"),
        "neither": (b"OFF\n0 0 0\n", "neither faces nor points"),
        "missing corner": (  # as the library's version finds it, or this package after it
            b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
            "not a readable .off file | its faces name points 0 to 7, but there are 3",
        ),
    },
    "obj": {
        "NaN": (b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "NaN or infinite"),
        "nothing": (b"mtllib /etc/passwd\n", "neither faces nor points"),
    },
    "ply": {
        "a billion points": (ply(BILLION), "claims 1,000,000,000 rows"),
        "a billion faces": (ply(3, more=FACES.replace("1", "1000000000", 1)), "rows of face"),
        "a billion of nothing": (ply(3, more="element none 1000000000\n"), "rows of none"),
        "no header": (b"ply\nformat ascii 1.0\n", "has no PLY header"),
        "infinite": (ply(3, "0 0 0\ninf 0 0\n0 1 0\n"), "NaN or infinite"),
    },
    "stl": {"a billion faces": (b"\0" * 80 + struct.pack("<I", BILLION) + b"\0" * 50, "claims 1,000,000,000 faces")},
    "gltf": {name: (make_gltf(change), said) for name, (change, said) in GLTF.items()}
    | {"brackets": (b"[" * 10**5, "its description is no"), "a list": (b"[]", "is no glTF 2.0")},
    "glb": {name: (make_glb(make_gltf(change)), said) for name, (change, said) in GLTF.items()}
    | {"a long description": (struct.pack("<4sIIII", b"glTF", 2, 12, 2**32 - 1, 0x4E4F534A), "claims a description")},
    "text cloud": {
        "a long line": (b"1 " * 2**20, "a line has more than"),
        "NaN": (b"0 0 0\nnan 1 2\n", "NaN or infinite"),
    },
    "npy": {
        "pickle": (objects(), "holds Python objects"),
        "a billion points": (npy((BILLION, 3), "<f8"), "24,000,000,000 bytes, but 54 are there"),
        "negative": (npy((-1, 3), "<f8"), "expected plain numbers"),
        "records": (npy((3,), "<f8,<f8"), "expected plain numbers"),
    },
    "clouds npz": {
        "pickle": (zipped({"points.npy": objects()}), "holds Python objects"),
        "a billion shapes": (zipped({"points.npy": npy((BILLION, 9, 3), "<i2")}), "but 54 are there"),
        "a bomb": (zip_bomb("points.npy", head=npy((2**28,), "<i2", b"")), "unpacks from"),
        "not an array": (zipped({"points.npy": b"x"}), "not an .npy array"),
    },
    "statistics npz": {
        "pickle": (zipped({"mu.npy": objects(), "sigma.npy": objects()}), "holds Python objects"),
        "a bomb": (zip_bomb("mu.npy", head=npy((2**26,), "<f8", b"")), "unpacks from"),
    },
    "images": {
        "50,000 x 50,000": (huge_png(50_000, 50_000), "exceeds limit"),
        "10,000 x 10,000": (huge_png(10_000, 10_000), "at most 67108864 are read"),
        "no pixels": (huge_png(8, 8), "truncated"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "not an image"),
        "cut short": (png(0)[:200], "truncated"),
    },
    "image zip": {
        "outside": (zipped({"../../a/0.png": png(0)}), "leads out of it"),
        "absolute": (zipped({"/a/0.png": png(0)}), "leads out of it"),
        "a link": (zipped({zip_link(): b"/etc/passwd"}), "is a symbolic link"),
        "a bomb": (zip_bomb("a/0.png"), "unpacks from"),
    },
    "cloud releases": {
        "outside": (zipped({"bed/../../train/a.off": b""}), "leads out of it"),
        "a link": (zipped({zip_link(): b"/etc/passwd"}), "is a symbolic link"),
        "a bomb": (zip_bomb("bed/train/a.off"), "unpacks from"),
        "a list that leads out": (
            zipped({"modelnet40_shape_names.txt": b"../..\n", "modelnet40_train.txt": b"../.._1\n"}), "leads out of it"
        ),
    },
    "image hdf5": {
        "a link": (hdf5(_linked), "link to another file"),
        "outside": (hdf5(_outside), "lies in another file"),
        "a billion labels": (hdf5(_claiming), "stored in it"),
    },
    "clouds hdf5": {
        "a link": (hdf5(lambda file: file.update(data=h5py.ExternalLink("a", "b"))), "link to another file")
    },
    "point weights": {
        name: (safetensors(change, point_weights()[0]), said)
        for name, (change, said) in {
            "wide": (lambda d: d["model"].update(embed_channels=[8, BILLION]), "expected at most 1048576"),
            "wider": (lambda d: d["model"].update(embed_channels=[8, 2**20]), "its description says"),
            "deep": (lambda d: d["model"].update(num_layers=2**20), "more weights than"),
            "deeper": (lambda d: d["model"].update(num_layers=10**30), "expected at most 1048576"),
            "many points": (lambda d: d.update(num_points=BILLION), "num_points 1000000000"),
            "no names": (lambda d: d.update(class_names=None), "expected a list of names"),
            "other names": (lambda d: d.update(class_names=["a"]), "1 class_names for 6 classes"),
            "a list": (lambda d: d.update(model=[1]), "expected an object"),
            "unknown": (lambda d: d["model"].update(attention="eval"), "eval"),
        }.items()
    }
    | {"a long header": (struct.pack("<Q", 2**62) + b"{}", "not a readable .safetensors file")},
    "generator weights": {
        name: (safetensors(change, generator_weights()), said)
        for name, (change, said) in {
            "wide": (lambda d: d["model"].update(width=BILLION), "expected at most 1048576"),
            "wider": (lambda d: d["model"].update(width=GENERATOR["width"] * 2), "its description says"),
            "no names": (lambda d: d.pop("class_names"), "class_names"),
            "classes": (lambda d: d["model"].update(num_classes=2**20), "its description says"),
        }.items()
    },
    "inception weights": {"pickle": (pickle.dumps(Trap()), "not Inception's weights")},
    "checkpoint": {"pickle": (pickle.dumps(Trap()), "no readable checkpoint")},
    "cifar tar": {"another archive": (b"\x1f\x8b\x08\0", "which is neither")},
    "record": {
        "brackets": (b"[" * 10**5, "not JSON"),
        "a list": (b"[]", "expected a JSON object"),
        "wrong kinds": (json.dumps(dict.fromkeys(FIELDS)).encode(), "should each be a"),
    },
    "configuration": {"a list": (b"[]", "a JSON object was expected")},
}  # fmt: skip
