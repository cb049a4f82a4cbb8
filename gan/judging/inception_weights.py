"""Where Inception's weights come from: a file that is named, torch hub's cache, or a download; no pickle is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared_attn.runtime.messages import one_line
from shared_attn.runtime.records import hash_file

INCEPTION_VARIABLE = "EAGAN_EAT_INCEPTION_WEIGHTS"
# pytorch-fid's and torch-fidelity's names for the same conversion of the 2015 TensorFlow network.
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILES[0]}"
INCEPTION_SHA256 = "6726825d"  # how the published file's SHA-256 begins; torch hub keeps it in the name


def hub_folder() -> Path:
    """torch hub's cache of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_inception_weights(path: Path | None) -> Path | None:
    """The file of Inception's weights: `path`, else $EAGAN_EAT_INCEPTION_WEIGHTS, else torch hub's cache, else None.

    Raises:
        FileNotFoundError: when `path` or the variable names a file that is not there.
    """
    named = [("--inception-weights", path)] if path else []
    if variable := os.environ.get(INCEPTION_VARIABLE):
        named.append((INCEPTION_VARIABLE, Path(variable)))
    for origin, candidate in named:
        if candidate is not None:
            if not candidate.is_file():
                raise FileNotFoundError(f"{origin} {candidate}: no such file, expected {INCEPTION_FILES[0]}")
            return candidate
    return next((hub_folder() / name for name in INCEPTION_FILES if (hub_folder() / name).is_file()), None)


def how_to_supply() -> str:
    """What a person can do who has no weights, for the end of a message."""
    return (
        f"give --inception-weights {INCEPTION_FILES[0]} or set {INCEPTION_VARIABLE}, or put that file into "
        f"{hub_folder()}; it is at {INCEPTION_URL} (95 MB, SHA-256 {INCEPTION_SHA256}...)"
    )


def download_inception_weights() -> Path:
    """Fetch pytorch-fid's file into torch hub's cache, where it appears only when it is whole.

    Raises:
        OSError: no connection, another file than the published one, or a folder that cannot be written.
    """
    target = hub_folder() / INCEPTION_FILES[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            INCEPTION_URL, str(target), hash_prefix=INCEPTION_SHA256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise OSError(
            f"--download: Inception's weights could not be fetched ({one_line(error)}); {how_to_supply()}"
        ) from error
    return target


def read_inception_weights(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The weights in a file, and the file's SHA-256; nothing in the file is run.

    A file in torch hub's cache must be the published one. One that was named may be another conversion: that is said
    on standard error.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    digest = hash_file(path)
    published = digest.startswith(INCEPTION_SHA256)
    expected = f"expected {INCEPTION_FILES[0]}, whose SHA-256 begins with {INCEPTION_SHA256}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file makes it run into
        raise ValueError(f"--inception-weights {path}: not Inception's weights (unreadable), {expected}") from error
    if not isinstance(state, Mapping) or "Conv2d_1a_3x3.conv.weight" not in state:
        raise ValueError(f"--inception-weights {path}: not Inception's weights, {expected}")
    if not published and path.parent == hub_folder():
        raise ValueError(f"--inception-weights {path}: its SHA-256 begins with {digest[:8]}, {expected}; remove it")
    if not published:
        print(
            f"warning: --inception-weights {path}: its SHA-256 begins with {digest[:8]}, the published weights' with "
            f"{INCEPTION_SHA256}; distances are not comparable with published ones",
            file=sys.stderr,
        )
    return state, digest
