"""ModelNet40 and ModelNet10 from their official archives of OFF meshes to the .npz layout of clouds.py."""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from pointcloud.clouds import CloudSet, normalise, quantise, write_clouds_file
from pointcloud.meshes import parse_mesh
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.records import hash_file
from shared_attn.runtime.seeding import mix_seed


@dataclass(frozen=True)
class Archive:
    """An official download: its address, and its SHA-256 where one was ever published (None: it was not)."""

    url: str
    sha256: str | None = None


ARCHIVES = {
    "modelnet40": Archive("http://modelnet.cs.princeton.edu/ModelNet40.zip"),
    "modelnet10": Archive("http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip"),
}
FOLDERS = {"modelnet40": "ModelNet40", "modelnet10": "ModelNet10"}


def prepare_modelnet(
    name: str, out: Path, *, num_points: int = 2048, seed: int = 0, url: str | None = None, sha256: str | None = None
) -> list[Path]:
    """Makes NAME_POINTS_train.npz and NAME_POINTS_test.npz in `out`; what is there already is kept.

    The meshes come from the folder or the zip ModelNet40 (ModelNet10) in `out`, else from the official address. They
    are sampled by area, with a seed, and normalised to the unit sphere around the sample's centroid; z stays up.

    Args:
        url, sha256: another address of the archive, and what its content must hash to.

    Raises:
        ValueError, OSError: a dead link or another checksum (the message says which file to put where), or a mesh that
            cannot be read.
    """
    targets = [out / f"{name}_{num_points}_{split}.npz" for split in ("train", "test")]
    if all(target.is_file() for target in targets):
        return targets
    folder, archive = out / FOLDERS[name], out / f"{FOLDERS[name]}.zip"
    if not folder.is_dir() and not archive.is_file():
        known = ARCHIVES[name]
        download(url or known.url, archive, sha256 or (known.sha256 if url is None else None), folder)
    for split, target in zip(("train", "test"), targets, strict=True):
        clouds, names = convert_meshes(folder if folder.is_dir() else archive, split, num_points, seed)
        write_clouds_file(target, clouds, names)
        print(f"{target}: {len(clouds)} shapes of {len(clouds.class_names)} classes", file=sys.stderr)
    return targets


def download(url: str, target: Path, sha256: str | None, folder: Path) -> None:
    """Fetches `url` to `target`, which appears only when it is whole and, where a checksum is known, right."""
    advice = f"put {target.name}, or its unpacked folder {folder.name}, into {target.parent} and run the command again"
    print(f"downloading {url}", file=sys.stderr)
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, atomic_write(part) as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(f"{url}: could not be downloaded ({error}); {advice}") from error
    found = hash_file(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        raise ValueError(f"{url}: its SHA-256 is {found}, expected {sha256}; {advice}")
    if sha256 is None:
        print(f"no checksum is published for {url}; what came has the SHA-256 {found}", file=sys.stderr)
    part.replace(target)


def convert_meshes(source: Path, split: str, num_points: int, seed: int) -> tuple[CloudSet, list[str]]:
    """CLASS/SPLIT/*.off in a folder or a zip -> clouds and the shapes' names."""
    from tqdm import tqdm

    with MeshSource(source) as meshes:
        class_names = meshes.class_names()
        members = [member for member in meshes.members if member.parts[-2] == split]
        if not members:
            raise ValueError(f"{source}: holds no CLASS/{split}/*.off")
        points = np.empty((len(members), num_points, 3), dtype=np.int16)
        for place, member in enumerate(tqdm(members, desc=f"{source.name} {split}", unit="mesh")):
            shape = parse_mesh(Path(source.name) / member, meshes.read(member))
            points[place] = quantise(normalise(shape.sample(num_points, mix_seed(seed, member.stem))))
    labels = torch.tensor([class_names.index(member.parts[-3]) for member in members])
    return CloudSet(torch.from_numpy(points), labels, class_names), [member.stem for member in members]


def load_off_folder(folder: Path, split: str, num_points: int = 2048, seed: int = 0) -> CloudSet:
    """The split of a folder CLASS/train/*.off, CLASS/test/*.off as clouds, which are kept in the cache folder."""
    from shared_attn.shapes.cache import cached

    files = sorted(folder.glob(f"*/{split}/*.off"))
    stamp = mix_seed(*(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files))
    with MeshSource(folder) as meshes:
        class_names = meshes.class_names()

    def make() -> dict[str, torch.Tensor]:
        clouds, _ = convert_meshes(folder, split, num_points, seed)
        return {"points": clouds.points, "label": clouds.label}

    tensors = cached(f"off-{folder.name}-{split}-{num_points}-seed{seed}-{stamp:016x}", make)
    source = {"name": folder.name.lower(), "split": split, "files": [], "fingerprint": f"{stamp:016x}"}
    return CloudSet(tensors["points"], tensors["label"], class_names, source=source)


class MeshSource:
    """The .../CLASS/SPLIT/NAME.off of a folder or a zip, sorted, read without unpacking."""

    def __init__(self, source: Path) -> None:
        self._folder, self._zip = source, None
        if source.is_dir():
            names: Iterator[str] = (path.relative_to(source).as_posix() for path in source.rglob("*.off"))
        else:
            try:
                self._zip = zipfile.ZipFile(source)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{source}: not a readable zip ({error}); remove it to download it anew") from error
            names = (name for name in self._zip.namelist() if name.lower().endswith(".off"))
        paths = (PurePosixPath(name) for name in names)
        self.members = sorted(p for p in paths if len(p.parts) >= 3 and p.parts[0] != "__MACOSX")

    def class_names(self) -> list[str]:
        return sorted({member.parts[-3] for member in self.members})

    def read(self, member: PurePosixPath) -> bytes:
        return (self._folder / member).read_bytes() if self._zip is None else self._zip.read(str(member))

    def __enter__(self) -> MeshSource:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()
