"""Draw images: python scripts/sample_gan.py --weights runs/a --out grid.png --classes cat dog"""

import command_line

from gan.samples.options import SampleConfig


def main() -> None:
    config = command_line.parse(SampleConfig, description=__doc__ or "")

    def start() -> None:
        from gan.samples.output import draw_samples

        print(draw_samples(config))

    command_line.run(start)


if __name__ == "__main__":
    main()
