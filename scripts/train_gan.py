"""Train EAGAN or SAGAN: python scripts/train_gan.py eagan-cifar10-small --data images.zip --out runs/a

Exit statuses: 0 at the end; 2 after a mistake or Ctrl-C; 75 when SIGTERM has stopped it. Both signals save it first;
the same command goes on.
"""

import command_line

from gan.presets import PRESETS, GanConfig


def main() -> None:
    config = command_line.parse(GanConfig, presets=PRESETS, description=__doc__)

    def start() -> None:
        from gan.training import train

        train(config)

    command_line.run(start)


if __name__ == "__main__":
    main()
