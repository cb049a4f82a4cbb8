"""Weights as one self-describing .safetensors file: its header rebuilds the model and names its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.messages import one_line

NAME = "weights.safetensors"
SHIPPED = Path(__file__).resolve().parents[2] / "results" / "weights"
HEADER_KEY = "eagan-eat"


def save_weights(path: Path | str, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes ``state`` to ``path`` with ``header`` (JSON-able) inside the file.

    Args:
        path: The file, usually ``weights.safetensors`` in a run's folder.
        state: A module's state_dict.
        header: ``kind`` ("gan.generator", "pointcloud.classifier", ...), ``model`` (constructor keywords), and whatever
            a user of the weights wants to know: ``class_names``, ``data``, ``metrics``.

    Raises:
        OSError: The file cannot be written; what was there is untouched.
    """
    from safetensors.torch import save

    # Views and tensors that share storage are stored as what they show.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={HEADER_KEY: json.dumps(dict(header), sort_keys=True)}))


def load_weights(path: Path | str, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of :func:`save_weights`: (state on the CPU, header).

    Raises:
        ValueError: Not a .safetensors file, not one written by this suite, or of another kind than ``kind``. That the
            weights fit their description is for `rebuilding.rebuild` to see.
        FileNotFoundError: There is no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER_KEY, "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no dict
    except (SafetensorError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path}: not a readable .safetensors file ({one_line(error, at_most=400)})") from error
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise ValueError(f"{path}: a .safetensors file, but not written by this suite (it has no description)")
    if kind is not None and header["kind"] != kind:
        raise ValueError(f"{path}: holds a {header['kind'][:40]}, expected a {kind}")
    return state, header


def find_weights(source: str | Path) -> Path:
    """The file that ``source`` names: a run's folder, a file, or the name of weights shipped in results/weights.

    Raises:
        ValueError: None of these; the message names the nearest shipped name and lists what is shipped.
    """
    path = Path(source)
    if path.is_dir():
        if (path / NAME).is_file():
            return path / NAME
        raise ValueError(f"--weights {source}: the folder holds no {NAME} (has the run come to its first evaluation?)")
    if path.is_file():
        return path
    shipped = SHIPPED / f"{source}.safetensors"
    if shipped.is_file():
        return shipped
    names = sorted(file.stem for file in SHIPPED.glob("*.safetensors"))
    close = get_close_matches(str(source).removesuffix(".safetensors"), names, n=1)
    raise ValueError(
        f"--weights {source}: no run folder, no file, and not shipped"
        + (f"; did you mean {close[0]}?" if close else "")
        + f" (shipped weights: {', '.join(names) or 'none'})"
    )
