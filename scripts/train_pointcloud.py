"""Train EAT, PCT or another point network: classification or part segmentation.

Exit statuses: 0 at the end; 2 after a mistake or Ctrl-C; 75 when SIGTERM has stopped it. Both signals save it first;
the same command goes on.
"""

from __future__ import annotations

from command_line import parse, run

from pointcloud.presets import PRESETS, Config


def main() -> None:
    config = parse(Config, presets=PRESETS, description=__doc__ or "")
    from pointcloud.training import train
    from shared_attn.runtime.processes import is_first

    metrics = train(config)
    if not is_first():
        return
    print(f"{config.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    print(f"weights, record and figures are in {config.out}")


if __name__ == "__main__":
    run(main)
