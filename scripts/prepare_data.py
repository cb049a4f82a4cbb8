"""Download a data set, checked; point sets are converted to the .npz layout that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from command_line import check_positive, parse, run

IMAGES = ("cifar10", "cifar100", "tiny-imagenet")  # read as they are released
CONVERSION = ("release", "num_points", "seed", "workers")  # flags of point sets


@dataclass(frozen=True)
class Options:
    name: Annotated[
        Literal["modelnet40", "modelnet10", "shapenetpart", "cifar10", "cifar100", "tiny-imagenet"],
        tyro.conf.Positional,
    ]
    """The data set."""
    out: Path = Path("data")
    """Folder of the files. An archive (ModelNet40.zip, cifar-10-python.tar.gz ...) or its unpacked folder that lies in
    it is taken instead of downloaded; a download that broke off goes on."""
    release: Literal["auto", "off", "hdf5", "text"] = "auto"
    """Of a point set, which publication: off (ModelNet's meshes), hdf5 (2,048 points a shape), text
    (modelnet40_normal_resampled, or ShapeNet-Part with normals). auto: what lies in the folder, else off or text."""
    num_points: int = 2048
    """Points of each shape."""
    seed: int = 0
    """Of the sampling of points."""
    workers: int = 0
    """Processes that convert point sets; 0: one a core. The result does not depend on it."""
    url: str | None = None
    """Another address of the archive."""
    sha256: str | None = None
    """What the downloaded archive must hash to."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if options.name in IMAGES:
        prepare_images_of(options)
        return
    check_positive(options, "num_points")
    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: expected at least 0")
    from pointcloud.releases.preparation import prepare

    files = prepare(
        options.name,
        options.out,
        release=options.release,
        num_points=options.num_points,
        seed=options.seed,
        workers=options.workers,
        url=options.url,
        sha256=options.sha256,
    )
    print(f"ready: {' '.join(map(str, files))}; train with --data {options.out} --dataset {options.name}")


def prepare_images_of(options: Options) -> None:
    """Images need no conversion: the flags of one are refused."""
    for name in CONVERSION:
        if getattr(options, name) != getattr(Options, name):
            raise ValueError(f"--{name.replace('_', '-')}: {options.name} is not converted; it is for point sets")
    from gan.data.releases import prepare_images

    path = prepare_images(options.name, options.out, url=options.url, sha256=options.sha256)
    print(f"ready: {path}; train with --data {path}")


if __name__ == "__main__":
    run(main)
