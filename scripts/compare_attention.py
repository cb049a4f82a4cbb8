"""Train one preset with several attentions and seeds under equal budgets, and write one table with mean and deviation.

Each training is a run of its own (OUT/ATTENTION-SEED) by the script that anyone would use for it; the same command
again goes on where it stopped. The record is written after each seed that all attentions have finished. With --vary
another flag takes attention's place.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from command_line import ROOT, parse, run

from gan.presets import PRESETS as GAN_PRESETS
from pointcloud.presets import PRESETS as POINT_PRESETS


@dataclass(frozen=True)
class Comparison:
    preset: str = ""
    """The training's preset, as the first argument names it."""
    attention: tuple[str, ...] = ("external", "self", "offset", "none")
    """Variants to compare."""
    vary: str = ""
    """Another flag of the training to compare, as name=value,value, for example form=offset,offset_query,plain."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each."""
    data: str | None = None
    """As of the training; the preset's own by default."""
    out: Path = Path("runs/compare")
    """Folder of the runs and of the comparison's record."""
    flags: tuple[str, ...] = ()
    """Further flags of every training without their dashes, as name=value, for example epochs=3."""


def main() -> None:
    presets = {name: Comparison(preset=name) for name in (*POINT_PRESETS, *GAN_PRESETS)}
    options = parse(Comparison, presets=presets, description=__doc__ or "")
    from shared_attn import list_attentions
    from shared_attn.runtime.ablation import parse_varied, write_ablation

    field, values = parse_varied(options.vary) if options.vary else ("attention", options.attention)
    unknown = [] if options.vary else [name for name in values if name not in list_attentions()]
    if unknown or not values or not options.seeds:
        known = ", ".join(list_attentions())
        raise ValueError(f"--attention {' '.join(unknown)}: expected some of {known}, and a seed")
    finished: list[Path] = []
    for seed in options.seeds:
        for value in values:
            finished.append(train(options, field, value, seed))
        told = f"{field.replace('_', ' ')} compared" if len(values) > 1 else "seeds"
        record = write_ablation(options.out / "record.json", finished, field, name=f"{options.preset}, {told}")
    for row in record["table"]:
        metric = row["metrics"][0]
        spread = "" if row[metric]["std"] is None else f" ± {row[metric]['std']:.4f}"
        print(f"{row[field]:20} {metric} {row[metric]['mean']:.4f}{spread}  {row['seconds']:.0f} s")


def train(options: Comparison, field: str, value: str, seed: int) -> Path:
    """Runs one training unless its record is there already; returns its folder."""
    folder = options.out / f"{value}-{seed}"
    if (folder / "record.json").exists():
        return folder
    script = "train_pointcloud.py" if options.preset in POINT_PRESETS else "train_gan.py"
    flags = {field.replace("_", "-"): value, "seed": str(seed), "out": str(folder)}
    flags |= {} if options.data is None else {"data": options.data}
    extra = [f"--{flag}" for flag in options.flags]
    extra += [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    print(f"{value}, seed {seed}", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / script), options.preset, *extra], check=False)
    if done.returncode:
        raise ValueError(f"{folder}: the training ended with status {done.returncode}; its own message says why")
    return folder


if __name__ == "__main__":
    run(main)
