"""Makes the .npz files of a public data set: downloads it, or takes what lies in the folder, and converts it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pointcloud.clouds import read_origin, write_clouds_file
from pointcloud.releases.archives import ARCHIVES
from pointcloud.releases.file_source import FileSource
from pointcloud.releases.readable import RELEASES, Release
from shared_attn.runtime.download import Archive, fetch


def prepare(
    name: str,
    out: Path,
    *,
    release: str = "auto",
    num_points: int = 2048,
    seed: int = 0,
    workers: int = 0,
    url: str | None = None,
    sha256: str | None = None,
) -> list[Path]:
    """Makes NAME_POINTS_train.npz and NAME_POINTS_test.npz in `out`; what is there already is kept.

    Args:
        name: of ARCHIVES.
        release: of ARCHIVES[name]; auto: the first whose folder or zip lies in `out`, else the first of all, which is
            downloaded.
        seed: of the sampling; a shape's points follow from it and the shape alone, not from the number of workers.
        workers: processes; 0: one a core.
        url, sha256: another address of the archive, and what its content must hash to.

    Raises:
        ValueError, OSError: what is asked for does not exist, cannot be downloaded (the message says which file to put
            where) or read, or the files in `out` were made in another way.
    """
    chosen = _choose(name, release, out)
    archive = ARCHIVES[name][chosen]
    origin = f"release={chosen} seed={seed}"
    targets = {split: out / f"{name}_{num_points}_{split}.npz" for split in ("train", "test")}
    for target in targets.values():
        made = read_origin(target) if target.is_file() else ""
        if made not in ("", origin):
            raise ValueError(f"{target}: was made with {made}, not {origin}; remove it or choose another --out")
    missing = [split for split, target in targets.items() if not target.is_file()]
    if missing:
        with FileSource(_locate(archive, out, url, sha256)) as source:
            kind = _find_release(name, chosen, source)
            for place, split in enumerate(("train", "test")):
                if split not in missing:
                    continue
                clouds, names = kind.read(
                    source, split, dataset=name, num_points=num_points, seed=seed, workers=workers
                )
                write_clouds_file(targets[split], clouds, names, origin=origin)
                print(f"{targets[split]}: {len(clouds)} shapes of {len(clouds.class_names)} classes", file=sys.stderr)
                if len(clouds) != archive.shapes[place]:
                    print(f"note: the official {split} split has {archive.shapes[place]} shapes", file=sys.stderr)
    return list(targets.values())


def _choose(name: str, release: str, out: Path) -> str:
    known = ARCHIVES[name]
    if release == "auto":
        lying = [key for key, archive in known.items() if _find(archive, out) is not None]
        return (lying or list(known))[0]
    if release not in known:
        raise ValueError(f"--release {release}: {name} has {', '.join(known)}")
    return release


def _find(archive: Archive, out: Path) -> Path | None:
    folder, file = out / archive.folder, out / archive.file
    return folder if folder.is_dir() else file if file.is_file() else None


def _locate(archive: Archive, out: Path, url: str | None, sha256: str | None) -> Path:
    lying = _find(archive, out)
    if lying is not None:
        return lying
    if url is not None:
        archive = replace(archive, urls=(url,), sha256=sha256, members={})
    elif sha256 is not None:
        archive = replace(archive, sha256=sha256)
    return fetch(archive, out)


def _find_release(name: str, key: str, source: FileSource) -> Release:
    family = "shapenetpart" if name == "shapenetpart" else "modelnet"
    release = RELEASES[family, key]
    if not release.recognises(source):
        raise ValueError(f"{source.path}: is not the {key} release of {name}; expected {release.expected}")
    return release
