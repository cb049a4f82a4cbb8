"""Whether what a training left behind is whole, and whether two runs ended alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from shared_attn.runtime import checkpoint, weights
from shared_attn.runtime.files import TEMPORARY
from shared_attn.runtime.folder_lock import NAME as LOCK
from shared_attn.runtime.progress import METRICS

PNG_HEAD, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
SAME_BYTES = ("*.png", "spectra.json", weights.NAME)  # in the folder and below


def find_damage(folder: Path, saved: list[int]) -> list[str]:
    """What is wrong with a run's folder after its process has gone; empty: nothing.

    Args:
        saved: the clocks of the checkpoints that were written; the last one, or a newer one, must be there.
    """
    found = []
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if path.is_file() and not TEMPORARY.fullmatch(path.name) and not _is_whole(path):
            found.append(f"{path.relative_to(folder)} is damaged")
    try:
        state = checkpoint.load_checkpoint(folder)
    except ValueError as error:
        return [*found, str(error)]
    clock = -1 if state is None else state["shown"]
    if saved and clock < saved[-1]:
        found.append(f"the checkpoint at {saved[-1]} was written, the newest one there is at {clock}")
    if len(saved) > 1 and not any((folder / name).exists() for name in (checkpoint.PREVIOUS, checkpoint.FRESH)):
        found.append("the previous checkpoint is gone")
    return found


def find_differences(run: Path, whole: Path) -> list[str]:
    """In what a finished run differs from one that nothing happened to; empty: in nothing that it computed."""
    found = [f"{path.relative_to(run)} was left over" for path in run.rglob("*") if TEMPORARY.fullmatch(path.name)]
    names = sorted({path.relative_to(whole) for pattern in SAME_BYTES for path in whole.rglob(pattern)})
    for name in names:
        if not (run / name).exists() or (run / name).read_bytes() != (whole / name).read_bytes():
            found.append(f"{name} differs")
    states = [checkpoint.load_checkpoint(folder) for folder in (run, whole)]
    if not _equal(*states):
        found.append("the checkpoint differs")
    lines, expected = (_read_lines(folder) for folder in (run, whole))
    if [_timeless(line) for line in lines] != [_timeless(line) for line in expected]:
        found.append(f"{METRICS} differs")
    seconds = [line["seconds"] for line in lines]
    if seconds != sorted(seconds) or seconds[0] < 0:
        found.append(f"the seconds of {METRICS} do not ascend")
    records = [json.loads((folder / "record.json").read_text(encoding="utf-8")) for folder in (run, whole)]
    if records[0]["metrics"] != records[1]["metrics"] or records[0]["seconds"] < 0:
        found.append("record.json differs")
    return found


def _is_whole(path: Path) -> bool:
    """Whether a file is readable to its end; logs, which grow, may end in the middle of their last line."""
    if path.name == LOCK or path.name.startswith("events.out.tfevents"):
        return True
    content = path.read_bytes()
    try:
        if path.suffix == ".pt":
            checkpoint.read_checkpoint(path)
        elif path.suffix == ".safetensors":
            weights.load_weights(path)
        elif path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".jsonl":
            for line in content.splitlines()[:-1]:
                json.loads(line)
        elif path.suffix == ".png":
            return content.startswith(PNG_HEAD) and content.endswith(PNG_END)
        elif path.suffix == ".html":
            return content.rstrip().endswith(b"</html>")
        else:
            return False  # a kind that is not known here cannot be vouched for
    except (ValueError, RuntimeError, EOFError, OSError):
        return False
    return True


def _read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}


def _equal(one: Any, other: Any) -> bool:
    """Equality of nested states, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
