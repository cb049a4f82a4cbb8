"""Download a data set, or convert what lies in the folder, to the .npz layout that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from command_line import parse, run


@dataclass(frozen=True)
class Options:
    name: Annotated[Literal["modelnet40", "modelnet10"], tyro.conf.Positional]
    """The data set."""
    out: Path = Path("data")
    """Folder of the .npz files. A ModelNet40.zip or an unpacked ModelNet40 in it is converted instead of downloaded."""
    num_points: int = 2048
    """Points sampled on each mesh."""
    seed: int = 0
    """Of the sampling."""
    url: str | None = None
    """Another address of the archive."""
    sha256: str | None = None
    """What the downloaded archive must hash to."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    if options.num_points < 1:
        raise ValueError(f"--num-points {options.num_points}: expected at least 1")
    from pointcloud.modelnet import prepare_modelnet

    files = prepare_modelnet(
        options.name,
        options.out,
        num_points=options.num_points,
        seed=options.seed,
        url=options.url,
        sha256=options.sha256,
    )
    print(f"ready: {' '.join(map(str, files))}; train with --data {options.out} --dataset {options.name}")


if __name__ == "__main__":
    run(main)
