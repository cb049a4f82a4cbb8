"""Stops a training script by signals, resumes it, and compares its weights with those of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from shared_attn.runtime.interrupt import PREEMPTED

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)


def start(script: str, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A training script in a process of its own, on one CPU thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *arguments, "--out", str(out), "--device", "cpu"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def wait_for(out: Path, shown: int) -> None:
    """Returns when the run has written the metrics of `shown` items."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and f'"shown": {shown},' in (out / "metrics.jsonl").read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the run did not come so far")


def assert_stops_change_nothing(script: str, arguments: list[str], stops: tuple[int, int, int], folder: Path) -> str:
    """One whole run, and one that gets SIGINT, SIGKILL and SIGTERM after `stops` items and is started again each time,
    end in the same bits. Returns what the whole run printed."""
    whole = start(script, folder / "whole", *arguments)
    said, told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told
    for shown, number in zip(stops, SIGNALS, strict=True):
        piece = start(script, folder / "pieces", *arguments)
        wait_for(folder / "pieces", shown)
        piece.send_signal(number)
        _, told = piece.communicate(timeout=300)
        if number == signal.SIGKILL:
            assert piece.returncode == -signal.SIGKILL
        else:
            assert piece.returncode == (PREEMPTED if number == signal.SIGTERM else 2)
            assert "interrupted at" in told.splitlines()[-1] and "Traceback" not in told
    piece = start(script, folder / "pieces", *arguments)
    _, told = piece.communicate(timeout=300)
    assert piece.returncode == 0, told
    one, other = (load_file(folder / name / "weights.safetensors") for name in ("whole", "pieces"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return said
