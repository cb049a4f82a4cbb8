"""Fixtures of the whole suite: where real data and golden numbers lie, and a way to run a script as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("EAGAN_EAT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (or named by EAGAN_EAT_SHARED)."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data not at hand: no ../shared/data (EAGAN_EAT_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]]:
    """A function: file name -> (meta, state, inputs, output) of an original implementation; skips where missing."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("golden numbers not at hand: no ../shared/golden (EAGAN_EAT_SHARED names another place)")

    def load(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        path = folder / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"golden numbers not at hand: {path.name}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != "meta"}
            meta = json.loads(str(file["meta"]))

        def part(prefix: str) -> dict[str, torch.Tensor]:
            names = [key for key in arrays if key.startswith(prefix)]
            return {name.removeprefix(prefix): torch.from_numpy(np.array(arrays[name])) for name in names}

        return meta, part("state/"), part("input/"), torch.from_numpy(arrays["output"])

    return load


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``scripts/NAME`` with arguments, as a user does; one thread, so that tests share two cores."""

    def call(
        name: str, *arguments: object, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        )

    return call


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    torch.manual_seed(0)
