"""Draw a run's page of samples, losses and metrics: python scripts/draw_gallery.py --run runs/a"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import command_line


@dataclass(frozen=True)
class GalleryConfig:
    """Which run."""

    run: Path
    """the folder of a finished or a running run of train_gan.py"""
    out: Path | None = None
    """the HTML page to write; by default gallery.html in the run's folder"""


def main() -> None:
    config = command_line.parse(GalleryConfig, description=__doc__ or "")

    def start() -> None:
        from gan.gallery import write_gallery

        print(write_gallery(config.run, config.out))

    command_line.run(start)


if __name__ == "__main__":
    main()
