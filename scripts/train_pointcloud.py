"""Train EAT, PCT or another point network: classification or part segmentation."""

from __future__ import annotations

from command_line import parse, run

from pointcloud.presets import PRESETS, Config


def main() -> None:
    config = parse(Config, presets=PRESETS, description=__doc__ or "")
    from pointcloud.training import train

    metrics = train(config)
    print(f"{config.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    print(f"weights, record and figures are in {config.out}")


if __name__ == "__main__":
    run(main)
