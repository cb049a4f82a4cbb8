"""The public releases that can be read as they are, from their folder or their zip: a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pointcloud.clouds import CloudSet
from pointcloud.releases import hdf5_clouds, modelnet, resampled_modelnet, shapenetpart
from pointcloud.releases.file_source import FileSource
from shared_attn.runtime.seeding import mix_seed

Reader = Callable[..., tuple[CloudSet, list[str]]]
NUM_POINTS = 2048  # of each cloud, where a release is read without being prepared


@dataclass(frozen=True)
class Release:
    """expected: the files it consists of. recognises: whether a source is one. read: clouds and names of a split.
    slow: worth keeping in the cache folder."""

    expected: str
    recognises: Callable[[FileSource], bool]
    read: Reader
    slow: bool = True


RELEASES: dict[tuple[str, str], Release] = {
    ("shapenetpart", "hdf5"): Release(
        hdf5_clouds.EXPECTED_PARTS,
        lambda source: source.find(hdf5_clouds.CATEGORY_FILE) is not None,
        hdf5_clouds.read_shapenetpart_hdf5,
        slow=False,
    ),
    ("shapenetpart", "text"): Release(
        shapenetpart.EXPECTED,
        lambda source: source.find(shapenetpart.CATEGORY_FILE) is not None,
        shapenetpart.read_shapenetpart_text,
    ),
    ("modelnet", "text"): Release(
        resampled_modelnet.EXPECTED, resampled_modelnet.recognises, resampled_modelnet.read_text_release
    ),
    ("modelnet", "hdf5"): Release(
        hdf5_clouds.EXPECTED_MODELNET,
        lambda source: source.find(hdf5_clouds.CLASS_FILE) is not None,
        hdf5_clouds.read_modelnet_hdf5,
        slow=False,
    ),
    # Last: finding meshes walks the whole folder.
    ("modelnet", "off"): Release(
        modelnet.EXPECTED, lambda source: bool(modelnet.list_meshes(source)), modelnet.read_off_release
    ),
}


def recognise(source: FileSource) -> Release | None:
    """The release that a folder or zip is, by what lies in it."""
    return next((release for release in RELEASES.values() if release.recognises(source)), None)


def describe_releases() -> str:
    """What `recognise` looks for, for a message."""
    return "; ".join(release.expected for release in RELEASES.values())


def load_release(source: FileSource, release: Release, dataset: str, split: str) -> CloudSet:
    """The split of a release; one that takes long to read is kept in the cache folder until its files change."""
    from shared_attn.shapes.cache import cached

    stamp = mix_seed(source.stamp(), dataset)

    def read() -> CloudSet:
        return release.read(source, split, dataset=dataset, num_points=NUM_POINTS, seed=0)[0]

    if release.slow:
        key = f"release-{source.path.name}-{split}-{NUM_POINTS}-seed0-{stamp:016x}"
        clouds = _unpack(cached(key, lambda: _pack(read())))
    else:
        clouds = read()
    found = {"name": clouds.source.get("name") or source.path.stem.lower(), "split": split}
    files = [] if source.path.is_dir() else [str(source.path)]
    return replace(clouds, source={**found, "files": files, "fingerprint": f"{stamp:016x}"})


_TABLES = ("class_names", "part_names", "part_start", "part_count", "source")


def _pack(clouds: CloudSet) -> dict[str, Tensor]:
    """A set as tensors alone, which is what the cache keeps: its tables become the bytes of a JSON object."""
    tables = json.dumps({name: getattr(clouds, name) for name in _TABLES}).encode()
    parts = {} if clouds.part_label is None else {"part_label": clouds.part_label}
    return {
        "points": clouds.points,
        "label": clouds.label,
        "tables": torch.frombuffer(bytearray(tables), dtype=torch.uint8),
        **parts,
    }


def _unpack(tensors: dict[str, Tensor]) -> CloudSet:
    tables = json.loads(tensors["tables"].numpy().tobytes())
    return CloudSet(tensors["points"], tensors["label"], part_label=tensors.get("part_label"), **tables)
