"""One folder a run: its configuration is written down, and a run with a changed one is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shared_attn.runtime.files import atomic_write, naming, remove_leftovers
from shared_attn.runtime.folder_lock import claim_folder, is_restarted

CONFIG = "config.json"
# In the order in which --fresh removes them: a kill in between must not leave a checkpoint without its configuration.
LEFT_BY_RUNS = (
    "checkpoint*.pt",
    "metrics.jsonl",
    "events.out.tfevents.*",
    "weights.safetensors",
    "record.json",
    CONFIG,
)


def open_run(folder: Path | str, config: Any, *, fresh: bool = False, free: Collection[str] = ()) -> None:
    """Makes ``folder`` a run of ``config`` (a dataclass instance), or checks that it already is one.

    A training has the folder for itself from here on (see ``folder_lock``); what a killed one left half-written is
    removed.

    A field that the run's configuration lacks is taken for its default: the run is older than the field, and a new
    field's default leaves a run as it was.

    Args:
        folder: The run's folder; made where it does not exist.
        config: The resolved configuration; written to config.json.
        fresh: Start over: the files of an earlier run (see ``LEFT_BY_RUNS``) are removed first; not by processes
            that torchrun starts again.
        free: Names of fields that may change from one start to the next (a device, a number of workers).

    Raises:
        ValueError: A run with another configuration lies there (the message lists the differences), or another
            training runs there.
        OSError: The folder cannot be made or written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: is a file; a folder for the run was expected")
    with naming(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    claim_folder(folder)
    remove_leftovers(folder)
    if fresh and not is_restarted():  # or a worker that is lost would take all that it did with it
        for pattern in LEFT_BY_RUNS:
            for path in folder.glob(pattern):
                path.unlink()
    new = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    if (folder / CONFIG).exists():
        old = {**_defaults(config), **read_config(folder)}
        differences = [
            f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
            for name in sorted(old.keys() | new.keys())
            if name not in free and old.get(name) != new.get(name)
        ]
        if differences:
            raise ValueError(
                f"--out {folder}: a run with another configuration lies there ({'; '.join(differences)}); "
                "give another --out, or --fresh to start over"
            )
    with atomic_write(folder / CONFIG, "w") as file:
        json.dump(new, file, indent=2)
        file.write("\n")


def _defaults(config: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields as JSON has them; fields without a plain default are left out."""
    values = {field.name: field.default for field in dataclasses.fields(config)}
    plain = {name: value for name, value in values.items() if value is not dataclasses.MISSING}
    return dict(json.loads(json.dumps(plain, default=str)))


def read_config(folder: Path | str) -> dict[str, Any]:
    """The configuration of the run in ``folder``.

    Raises:
        ValueError: No configuration is there, or it cannot be read.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: not a run's folder, it holds no {CONFIG}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return config
