"""Result records: one JSON file a run, with everything that is needed to judge and to repeat it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.launch import multiplies_bfloat16

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "torchvision", "lightning-fabric", "numpy", "scipy", "torchmetrics", "trimesh", "torch-geometric")


def write_record(
    path: Path | str,
    *,
    name: str,
    kind: str,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    seeds: Sequence[int],
    metrics: Mapping[str, float],
    parameters: int | Mapping[str, int] | None,
    multiply_adds: int | Mapping[str, int] | None,
    seconds: float,
    device: str,
    curves: Mapping[str, Any] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    note: str = "",
) -> None:
    """Writes a record to ``path``, with command, commit, machine, library versions and date added.

    Args:
        path: The file, ``record.json`` in a run's folder, or one under results/records.
        name: What the results' table calls it, for example "eat-small on ModelNet40".
        kind: "gan", "pointcloud", "attention" or "benchmark".
        config: The resolved configuration.
        data: Name of the data set, its files' hashes, the split.
        seeds: Every seed used.
        metrics: Values whose names state their protocol (``fd_lite0_5k_train``, ``overall_accuracy``).
        parameters: Counted parameters, of the whole or by network.
        multiply_adds: Counted multiply-adds of a forward of one item, of the whole or by network.
        seconds: Wall time of the run.
        device: "cpu" or "cuda", as the run used it.
        curves: For figures: a name to its points over the run, [items shown, value] each.
        tables: Rows that belong to no curve, as a benchmark has: a name to its rows.
        note: What a reader must know.
    """
    record = {
        "name": name,
        "kind": kind,
        "command": shlex.join(["python", *map(_without_home, sys.argv)]),
        "config": dict(config),
        "commit": current_commit(),
        "data": dict(data),
        "seeds": list(seeds),
        "metrics": dict(metrics),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "seconds": round(seconds, 1),
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), **_versions()},
        "date": datetime.date.today().isoformat(),
        "curves": dict(curves or {}),
        **({"tables": {name: list(rows) for name, rows in tables.items()}} if tables else {}),
        "note": note,
    }
    with atomic_write(path, "w") as file:
        json.dump(record, file, indent=1, default=str)
        file.write("\n")


def write_benchmark(
    path: Path | str,
    name: str,
    options: Any,
    metrics: Mapping[str, float],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seconds: float,
    device: str,
    data: str = "random numbers",
) -> None:
    """Writes the record of a benchmark: ``options`` is its dataclass of flags, ``tables`` what it measured."""
    write_record(
        path,
        name=name,
        kind="benchmark",
        config={key: value for key, value in dataclasses.asdict(options).items() if key != "json"},
        data={"name": data},
        seeds=[],
        metrics=metrics,
        parameters=None,
        multiply_adds=None,
        seconds=seconds,
        device=device,
        tables=tables,
    )


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def current_commit() -> str:
    """The commit of the checkout this code runs from, with "+changes" where files differ; "unknown" outside one."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores used, whether the device multiplies bfloat16, and the GPU where ``device`` is one."""
    machine: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": multiplies_bfloat16(device),
    }
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def _without_home(argument: str) -> str:
    """The command as another person would type it: paths relative to the checkout."""
    path = Path(argument)
    return os.path.relpath(path, ROOT) if path.is_absolute() else argument
