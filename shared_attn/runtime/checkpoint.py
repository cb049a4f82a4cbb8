"""Checkpoints for exact resume: written to a temporary name, renamed, and the previous good one kept."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.messages import first_line

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
FRESH = "checkpoint.new.pt"  # stands there only after a kill between two renames


def save_checkpoint(folder: Path | str, state: dict[str, Any]) -> None:
    """Writes ``state`` (nested dicts and lists of tensors, numbers and strings) to ``folder``/checkpoint.pt.

    The checkpoint that stood there becomes checkpoint.previous.pt; at every moment one of the two is whole.

    Raises:
        OSError: The folder cannot be written, or the disk is full; what was there is untouched.
    """
    folder = Path(folder)
    try:
        with atomic_write(folder / FRESH) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's zip writer reports a full disk so
        raise OSError(f"{folder / NAME}: the checkpoint could not be written ({first_line(error)})") from error
    if (folder / NAME).exists():
        os.replace(folder / NAME, folder / PREVIOUS)
    os.replace(folder / FRESH, folder / NAME)


def load_checkpoint(folder: Path | str) -> dict[str, Any] | None:
    """Returns the newest readable checkpoint of ``folder`` on the CPU, or None where there is none.

    Only tensors and plain values are read (``weights_only=True``); a checkpoint file never runs code.

    Raises:
        ValueError: There are checkpoint files, and none of them can be read.
    """
    folder, unreadable = Path(folder), []
    for name in (FRESH, NAME, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except (ValueError, OSError) as error:
            unreadable.append(f"{path} ({first_line(error)})")
            continue
        for broken in unreadable:
            print(f"warning: skipped an unreadable checkpoint: {broken}", file=sys.stderr)
        return state
    if unreadable:
        raise ValueError(f"no readable checkpoint: {'; '.join(unreadable)}; --fresh starts over")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what one file of :func:`save_checkpoint` holds, on the CPU, after a look at its checksums.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes a checksum of each part, and does not read it
            if archive.testzip() is not None:
                raise ValueError("its checksums differ")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes make the reader raise any kind
        raise ValueError(first_line(error)) from error
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state
