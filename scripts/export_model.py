"""Write a trained network as one file for other programs, .onnx or .pt2: raw points in, logits out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line import parse, quick_imports, run


@dataclass(frozen=True)
class Options:
    out: Path
    """The file: a name that ends in .onnx or .pt2 (torch.export)."""
    weights: str = "eat-small-modelnet40"
    """A run's folder, a .safetensors file, or the name of shipped weights."""
    format: Literal["auto", "onnx", "torch"] = "auto"
    """For names that end otherwise."""
    num_points: int = 0
    """Points of a cloud, where the graph is to be for one number only; 0: any."""
    batch_size: int = 0
    """Clouds at once, where the graph is to be for one number only; 0: any."""
    check: bool = True
    """Run the file beside the network, on degenerate clouds too, before it is written."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    for name in ("num_points", "batch_size"):
        if getattr(options, name) < 0:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: expected a number of at least 0 (0: any), got {getattr(options, name)}")
    with quick_imports():
        from pointcloud.export import choose_format, export_model
        from pointcloud.export_check import check_export
        from pointcloud.models import load_model
        from shared_attn.runtime.files import atomic_write

    form = choose_format(options.out, None if options.format == "auto" else options.format, check=options.check)
    model = load_model(options.weights)
    exported = export_model(model, form, batch_size=options.batch_size, num_points=options.num_points)
    if options.check:
        try:
            print(check_export(model, exported))
        except ValueError as error:
            raise ValueError(f"--out {options.out}: not written: {error}") from error
    with atomic_write(options.out) as file:
        file.write(exported.contents)
    print(f"{options.out}: {exported.format}, {len(exported.contents) / 1e6:.1f} MB, {exported.inputs}")


if __name__ == "__main__":
    run(main)
