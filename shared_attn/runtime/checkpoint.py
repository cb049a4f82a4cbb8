"""Checkpoints for exact resume: written to a temporary name, renamed, and the previous good one kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from shared_attn.runtime.files import atomic_write

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(folder: Path | str, state: dict[str, Any]) -> None:
    """Writes ``state`` (nested dicts and lists of tensors, numbers and strings) to ``folder``/checkpoint.pt.

    The checkpoint that stood there becomes checkpoint.previous.pt; at every moment one of the two is whole.

    Raises:
        OSError: The folder cannot be written, or the disk is full; what was there is untouched.
    """
    folder = Path(folder)
    try:
        with atomic_write(folder / "checkpoint.new.pt") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's zip writer reports a full disk so
        raise OSError(f"{folder / NAME}: the checkpoint could not be written ({_first_line(error)})") from error
    if (folder / NAME).exists():
        os.replace(folder / NAME, folder / PREVIOUS)
    os.replace(folder / "checkpoint.new.pt", folder / NAME)


def load_checkpoint(folder: Path | str) -> dict[str, Any] | None:
    """Returns the newest readable checkpoint of ``folder`` on the CPU, or None where there is none.

    Only tensors and plain values are read (``weights_only=True``); a checkpoint file never runs code.

    Raises:
        ValueError: There are checkpoint files, and none of them can be read.
    """
    folder, unreadable = Path(folder), []
    for name in ("checkpoint.new.pt", NAME, PREVIOUS):  # a new one stands there only after a kill between two renames
        path = folder / name
        if not path.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a damaged file makes it run into
            unreadable.append(f"{path} ({_first_line(error)})")
            continue
        for broken in unreadable:
            print(f"warning: skipped an unreadable checkpoint: {broken}", file=sys.stderr)
        return state
    if unreadable:
        raise ValueError(f"no readable checkpoint: {'; '.join(unreadable)}; --fresh starts over")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
