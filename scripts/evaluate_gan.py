"""Judge a generator: python scripts/evaluate_gan.py --weights runs/a --data images.zip --metrics fd kd prdc"""

from __future__ import annotations

import json

import command_line

from gan.judging.options import JudgeConfig


def evaluate(config: JudgeConfig) -> None:
    """Evaluate, print, and write the values."""
    from gan.judging.judge import judge
    from shared_attn.runtime.files import atomic_write
    from shared_attn.runtime.launch import choose_device

    report = judge(config, choose_device(config.device))
    for name, value in report["metrics"].items():
        print(f"{name:40} {value:.6g}")
    for path in (config.save_statistics, config.neighbours_out if config.neighbours else None):
        if path is not None:
            print(f"written: {path}")
    if config.json is not None:
        with atomic_write(config.json, "w") as file:
            json.dump(report, file, indent=1)


def main() -> None:
    config = command_line.parse(JudgeConfig, description=__doc__ or "")
    command_line.run(lambda: evaluate(config))


if __name__ == "__main__":
    main()
