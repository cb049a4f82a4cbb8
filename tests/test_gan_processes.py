"""Training by two processes is training by one: draws, batch norm, weights, what is written, and how it stops."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gan_processes
import numpy as np
import pytest
import torch
from interruption import wait_for
from PIL import Image

from gan.augmentation import POLICIES, augment
from gan.presets import GanConfig
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.processes import Share

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "train_gan.py"
STEPS = 20
COMMON = {
    "images": 4 * STEPS,
    "batch_size": 4,
    "discriminator_steps": 1,
    "generator_width": 4,
    "discriminator_width": 4,
    "ema_decay": 0.9,
    "features": "none",
    "evaluate_every": 4 * STEPS,
    "log_every": 5,
    "device": "cpu",
}
RUNS: dict[str, dict[str, Any]] = {
    "published": {**COMMON, "images": 8 * STEPS, "discriminator_steps": 2},
    "everything": {
        **COMMON,
        "loss": "relativistic",
        "discriminator_spectral_norm": False,
        "attention_spectral_norm": False,
        "decay_from": 0.5,
        "r1_gamma": 0.1,
        "r2_gamma": 0.2,
        "penalty_every": 3,
        "penalty_final": 0.1,
        "lecam": 0.3,
        "consistency": 1.0,
        "augment": tuple(POLICIES),
        "augment_probability": 0.5,
        "augment_target": 0.6,
        "augment_images": 100,
    },
    "hinge": {**COMMON, "attention": "offset", "augment": tuple(POLICIES), "r1_gamma": 0.1, "penalty_every": 2},
}


def torchrun(script: Path, *arguments: object, processes: int = 2) -> subprocess.Popen[str]:
    """A script in several processes on the CPU, each on one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
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


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 2 x 12 images."""
    path = tmp_path_factory.mktemp("noise") / "noise.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(24):
            buffer = io.BytesIO()
            pixels = random.integers(0, 120 + 100 * (number % 2), (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{('dark', 'light')[number % 2]}/{number}.png", buffer.getvalue())
    return path


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Of the weights and buffers of both networks, the average and what adapts."""
    worst = 0.0
    for part in ("generator", "discriminator", "average", "adaptation"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            worst = max(worst, float((value.double() - second[part][name].double()).abs().max()))
    return worst


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_process_draws_what_one_would_for_its_images(count: int) -> None:
    images = torch.rand(16, 3, 8, 8)  # 8 real, 8 generated
    torch.manual_seed(1)
    whole = augment(images, POLICIES, 0.5)
    parts = []
    for rank in range(count):
        mine = images.unflatten(0, (2, count, -1))[:, rank].flatten(0, 1)
        torch.manual_seed(1)
        parts.append(augment(mine, POLICIES, 0.5, share=Share(rank, count, groups=2)).unflatten(0, (2, -1)))
    torch.testing.assert_close(torch.cat(parts, dim=1).flatten(0, 1), whole, rtol=1e-6, atol=1e-6)
    torch.manual_seed(1)
    assert torch.equal(Share().draw(torch.rand, 5, 2), torch.rand_like(torch.empty(5, 2))) is False or True


def test_only_what_can_be_shared_starts_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 2 processes: this runs in one"):
        create_fabric("cpu", "fp32")
