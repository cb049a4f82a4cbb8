"""Starts scripts in several processes, as torchrun does, and finds them, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def torchrun(
    script: Path,
    *arguments: object,
    processes: int = 2,
    restarts: int = 0,
    launch: Sequence[str] = ("--standalone",),
) -> subprocess.Popen[str]:
    """A script in several processes on the CPU, each on one thread; `launch`: how torchrun's launchers meet."""
    command = [sys.executable, "-m", "torch.distributed.run", *launch, f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, f"--max-restarts={restarts}", str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """What a process that ends with this status wrote to standard error."""
    _, told = process.communicate(timeout=300)
    assert process.returncode == status, told
    return told


def worker(launcher: subprocess.Popen[str], rank: int) -> int:
    """The number of a process that torchrun started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == launcher.pid and f"RANK={rank}".encode() in environment:
            return int(path.name)
    raise AssertionError(f"no process of rank {rank}")
