"""Training by two processes is training by one: draws, batch norm, weights, what is written, and how it stops."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import gan_processes
import numpy as np
import pytest
import torch
from interruption import wait_for
from PIL import Image
from torchrun import finish, torchrun, worker

from gan.augmentation import POLICIES, augment
from gan.judging.features import load_features
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.processes import Share

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "train_gan.py"
STEPS = 20
COMMON = {
    "images": 4 * STEPS,
    "batch_size": 4,
    "discriminator_steps": 1,
    "generator_width": 2,
    "discriminator_width": 4,
    "ema_decay": 0.9,
    "features": "none",
    "evaluate_every": 4 * STEPS,
    "log_every": 5,
    "device": "cpu",
}
RUNS: dict[str, dict[str, Any]] = {
    "published": {**COMMON, "images": 8 * STEPS, "discriminator_steps": 2}
    | {"features": "lite0", "evaluation_samples": 150, "compare_raw": True},
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
    "grouped": {**COMMON, "batch_size": 8, "images": 8 * STEPS, "group_size": 2, "warm_up": 128},
    "hinge": {**COMMON, "attention": "offset", "augment": tuple(POLICIES), "r1_gamma": 0.1, "penalty_every": 2}
    | {"reuse_generated": True},
}


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


def losses(folder: Path) -> list[list[float]]:
    """Both networks' losses, line by line."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line["discriminator_loss"], line["generator_loss"]] for line in found if "generator_loss" in line]


def metrics(folder: Path) -> dict[str, float]:
    """Of the run's one evaluation."""
    found: dict[str, float] = json.loads((folder / "record.json").read_text())["metrics"]
    return found


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


def test_only_what_can_be_shared_starts_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 2 processes: this runs in one"):
        create_fabric("cpu", "fp32")


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where rounding leaves no doubt; the job checks synchronised batch norm too."""
    job = torchrun(ROOT / "tests" / "gan_processes.py", tmp_path / "two", noise, json.dumps(RUNS))
    told = finish(job)
    assert "Warning" not in told
    assert {"norms0", "norms1"} <= {path.name for path in (tmp_path / "two").iterdir()}
    monkeypatch.setattr(gan_processes.sampling, "STATISTICS_BATCHES", 2)
    monkeypatch.setattr(gan_processes.training, "load_features", load_features)
    try:
        gan_processes.train_exactly(noise, tmp_path / "one", RUNS)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in RUNS:
        one, two = (checkpoint(tmp_path / folder / name) for folder in ("one", "two"))
        assert one["generator"]["conv.bias"].dtype == torch.float64
        assert one["step"] == two["step"] == STEPS
        assert largest_difference(one, two) < 1e-7, name
        lines = [losses(tmp_path / folder / name) for folder in ("one", "two")]
        assert len(lines[0]) == 4
        np.testing.assert_allclose(*lines, rtol=1e-7, atol=1e-7)
        assert metrics(tmp_path / "one" / name) == pytest.approx(metrics(tmp_path / "two" / name), rel=1e-6)
    assert {"fd_lite0_150_train", "raw_fd_lite0_150_train"} <= metrics(tmp_path / "two" / "published").keys()


TINY = (
    "--batch-size 4 --discriminator-steps 1 --generator-width 2 --discriminator-width 4 --no-attention-spectral-norm "
    "--generator-lr 4e-4 --discriminator-lr 8e-4 --betas 0 0.99 --decay-from 0.5 --ema-decay 0.995 --features none "
    "--log-every 1 --device cpu --evaluate-every 1000000 --checkpoint-every 40"
)


def train_tiny(noise: Path, out: Path, *more: object, **launch: int) -> subprocess.Popen[str]:
    """scripts/train_gan.py on the noise, by some processes."""
    return torchrun(SCRIPT, "eagan-cifar10", "--data", noise, "--out", out, *TINY.split(), *more, **launch)


@pytest.mark.slow
def test_a_run_is_interrupted_by_one_process_and_resumed_by_another_number(noise: Path, tmp_path: Path) -> None:
    """In float32 weights differ by rounding, a few by more: Adam makes a whole step of a gradient that is rounding."""
    finish(train_tiny(noise, tmp_path / "whole", "--images", 80, processes=1))
    pieces = train_tiny(noise, tmp_path / "pieces", "--images", 80)
    wait_for(tmp_path / "pieces", 12)
    os.kill(worker(pieces, rank=1), signal.SIGINT)
    told = finish(pieces, status=1)  # torchrun's own
    assert told.count("interrupted at") == told.count("error: ") == 1
    assert "exitcode  : 2" in told and "SIGTERM" not in told.split("Failures")[-1]
    shown = checkpoint(tmp_path / "pieces")["shown"]
    assert 12 <= shown < 80
    finish(train_tiny(noise, tmp_path / "pieces", "--images", 80, processes=1))
    one, two = (checkpoint(tmp_path / name) for name in ("whole", "pieces"))
    for part in ("generator", "discriminator", "average"):
        for name, value in one[part].items():
            difference = float((two[part][name] - value).double().abs().mean())
            # Batch norm takes a bias before it away again: its gradient is rounding, which Adam makes a whole step of.
            idle = part != "discriminator" and name.endswith(("bias", "running_mean"))
            # Batch norm's variances, and spectral norm's vectors, which turn far where singular values lie close.
            derived = name.endswith(("_u", "_v", "running_var"))
            assert difference < (2e-2 if idle else 5e-3 if derived else 1e-4), (name, difference)
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "pieces"), rtol=1e-2, atol=1e-3)
    assert len(list((tmp_path / "pieces").glob("events.out.tfevents.*"))) == 2  # one a start, of the first process


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--batch-size", 5], "--batch-size 5: expected a multiple of the 2 processes"),
        (["--cuda-graphs"], "--cuda-graphs: captures the steps of a single process, torchrun started 2"),
        (["--compile"], "--compile: compiles the steps of a single process, torchrun started 2"),
        (["--data", "no.zip"], "--data no.zip: no such file or folder"),
        (["--batchsize", 4], "unknown flag --batchsize; did you mean --batch-size?"),
    ],
)
def test_a_mistake_is_told_once(flags: list[object], message: str, noise: Path, tmp_path: Path) -> None:
    told = finish(train_tiny(noise, tmp_path / "run", *flags), status=1)
    before = told.split("Traceback")[0]  # torchrun's own, once a process has failed
    assert before.count("error: ") == 1 and f"error: {message}" in before
    assert told.count("Traceback") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_the_run_goes_on(rank: int, noise: Path, tmp_path: Path) -> None:
    """From the last checkpoint, even with --fresh, which is meant for the first start."""
    finish(train_tiny(noise, tmp_path / "whole", "--images", 120))
    pieces = train_tiny(noise, tmp_path / "pieces", "--images", 120, "--fresh", restarts=3)
    wait_for(tmp_path / "pieces", 52)
    os.kill(worker(pieces, rank), signal.SIGKILL)
    assert "error: " not in finish(pieces)
    one, two = (checkpoint(tmp_path / name) for name in ("whole", "pieces"))
    assert one["shown"] == two["shown"] == 120
    assert largest_difference(one, two) == 0  # two processes add up in one order
    assert len(list((tmp_path / "pieces").glob("events.out.tfevents.*"))) == 2  # so the second did not start over
