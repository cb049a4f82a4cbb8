"""Training point networks by two processes is training by one: draws, weights, what is written, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pointcloud_processes
import pytest
import torch
from interruption import wait_for
from torch import nn
from torchrun import finish, torchrun, worker

from pointcloud import evaluation
from pointcloud.datasets import load_split
from pointcloud.evaluation import evaluate_classifier, evaluate_segmenter, predict_logits
from pointcloud.layers import drop_path, share_draws
from pointcloud.models import create_model
from pointcloud.presets import Config
from shared_attn.runtime.processes import Share

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "train_pointcloud.py"
# 20 steps, every option that changes one.
COMMON: dict[str, Any] = {
    "dataset": "",
    "device": "cpu",
    "epochs": 4,
    "batch_size": 4,
    "num_points": 24,
    "learning_rate": 5e-3,
    "warmup_epochs": 0.5,
    "validation": 0.1,
    "evaluate_epochs": 2,
    "average_epochs": 0.5,
    "norm_clouds": 8,
    "gradient_clip": 0.5,
    "drop_path": 0.5,
    "point_dropout": 0.2,
    "rotation": 30.0,
    "tilt": 20.0,
    "scale": (0.8, 1.25),
    "shift": 0.1,
    "jitter": 0.01,
    "embed_channels": (8, 8),
    "num_layers": 2,
    "fuse_channels": 24,
    "head_channels": (16, 12),
}
NEIGHBOURS = {"neighbour_channels": (12, 16), "num_centres": (16, 8), "num_neighbours": 4}
PARTS = {"task": "segment", "neighbour_channels": (8, 16), "num_neighbours": 4}
RUNS: dict[str, dict[str, Any]] = {
    "classifier": {**COMMON, **NEIGHBOURS, "point_mix": "cutmix_k", "mix_probability": 0.7},
    "published": {**COMMON, **NEIGHBOURS, "attention": "offset", "optimizer": "sgd", "pooling": "max_mean"}
    | {"point_mix": "rsmix", "norm_clouds": 0, "position_embedding": True},
    "segmenter": {**COMMON, **PARTS},
}


@pytest.fixture(scope="module")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 32 points, flat and tall boxes, each with a lower and an upper part."""
    folder, random = tmp_path_factory.mktemp("solids"), np.random.default_rng(0)
    for split, count in (("train", 22), ("test", 37)):
        label = np.arange(count) % 2
        points = random.uniform(-0.5, 0.5, (count, 32, 3))
        points[label == 0] *= (1, 1, 0.2)
        np.savez(
            folder / f"solids_32_{split}.npz",
            points=(points * 4095).astype(np.int16),
            label=label.astype(np.uint8),
            class_names=np.array(["flat", "tall"]),
            scale=np.float32(1 / 4096),
            part_label=((points[..., 2] > 0) + 2 * label[:, None]).astype(np.uint8),
            part_names=np.array(["flat/low", "flat/high", "tall/low", "tall/high"]),
            class_part_start=np.array([0, 2], np.uint8),
            class_part_count=np.array([2, 2], np.uint8),
        )
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Of the weights and buffers of the network and of the average."""
    worst = 0.0
    for part in ("network", "average"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            worst = max(worst, float((value.double() - second[part][name].double()).abs().max()))
    return worst


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run, but for what depends on the time."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_process_draws_what_one_would_for_its_clouds(count: int) -> None:
    x, branch = torch.randn(8, 5, 6), torch.randn(8, 5, 6)
    torch.manual_seed(1)
    whole = nn.Dropout(0.3)(drop_path(x, x + branch, 0.4))
    parts = []
    for rank in range(count):
        share = Share(rank, count)
        layer = nn.Sequential(nn.Dropout(0.3))
        share_draws(layer, share)
        torch.manual_seed(1)
        mine = share.take(x)
        parts.append(layer(drop_path(mine, mine + share.take(branch), 0.4, share)))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_shares_of_an_evaluation_are_the_bits_of_the_whole(
    task: Any, solids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for more processes than groups of clouds: 37 clouds are two groups of 32."""
    config = Config(**{**COMMON, **(PARTS if task == "segment" else NEIGHBOURS)})
    clouds = load_split(str(solids), "", "test")
    network = create_model(config, clouds)
    whole = torch.cat([logits for _, logits in predict_logits(network, clouds, 24)])
    filled = torch.full_like(whole, torch.nan)
    for rank in range(3):
        for items, logits in predict_logits(network, clouds, 24, share=Share(rank, 3)):
            assert filled[items].isnan().all()
            filled[items] = logits
    assert torch.equal(filled, whole)
    measure = evaluate_segmenter if task == "segment" else evaluate_classifier
    parts: list[list[torch.Tensor]] = []
    for rank in range(3):
        gathered: list[torch.Tensor] = []
        monkeypatch.setattr(evaluation, "gather_rows", lambda rows, _, to=gathered: to.append(rows.clone()) or rows)
        measure(network, clouds, 24, share=Share(rank, 3))
        parts.append(gathered)
    sums = iter([torch.stack(rows).sum(0) for rows in zip(*parts, strict=True)])
    monkeypatch.setattr(evaluation, "gather_rows", lambda *_: next(sums))
    together = measure(network, clouds, 24, share=Share(0, 3))
    monkeypatch.undo()
    assert str(together) == str(measure(network, clouds, 24))


RUN_NAMES = ("whole", "pieces")


def compare(solids: Path, folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    runs = {name: {**changes, "data": str(solids)} for name, changes in runs.items()}
    job = torchrun(ROOT / "tests" / "pointcloud_processes.py", folder / "two", json.dumps(runs))
    told = finish(job)
    assert "Warning" not in told
    pointcloud_processes.train_exactly(folder / "one", runs)
    for name in runs:
        one, two = (checkpoint(folder / place / name) for place in ("one", "two"))
        assert one["network"]["encoder.fuse.linear.weight"].dtype == torch.float64
        assert one["shown"] == two["shown"] == 20 * 4
        assert largest_difference(one, two) < 1e-9, name
        lines = [metrics(folder / place / name) for place in ("one", "two")]
        assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
        for first, second in zip(*lines, strict=True):
            np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-9)


def test_two_processes_train_what_one_does(solids: Path, tmp_path: Path) -> None:
    compare(solids, tmp_path, {"classifier": RUNS["classifier"]})


@pytest.mark.slow
def test_two_processes_end_in_the_weights_of_one(solids: Path, tmp_path: Path) -> None:
    """In float64, where rounding leaves no doubt."""
    compare(solids, tmp_path, {name: run for name, run in RUNS.items() if name != "classifier"})


TINY = (
    "--dataset= --epochs 8 --batch-size 4 --num-points 24 --validation 0.1 --evaluate-epochs 4 --precision fp32 "
    "--learning-rate 1e-3 --embed-channels 8 8 --neighbour-channels 12 16 --num-centres 16 8 "
    "--num-neighbours 4 --fuse-channels 24 --head-channels 16 12 --norm-clouds 8 --device cpu"
)


def train_tiny(solids: Path, out: Path, *more: object, **launch: Any) -> subprocess.Popen[str]:
    """scripts/train_pointcloud.py on the solids, by some processes."""
    return torchrun(SCRIPT, "eat-shapes-small", "--data", solids, "--out", out, *TINY.split(), *more, **launch)


@pytest.mark.slow
def test_a_run_is_interrupted_by_one_process_and_resumed_by_another_number(solids: Path, tmp_path: Path) -> None:
    """In float64: batch norm over few clouds multiplies rounding, step by step."""
    run = {**RUNS["classifier"], "data": str(solids), "batch_size": 10, "epochs": 16}
    pieces = torchrun(ROOT / "tests" / "pointcloud_processes.py", tmp_path / "pieces", json.dumps({"run": run}))
    wait_for(tmp_path / "pieces" / "run", 40)
    os.kill(worker(pieces, rank=1), signal.SIGINT)
    finish(pieces, status=1)  # torchrun's own
    assert 40 <= checkpoint(tmp_path / "pieces" / "run")["shown"] < 320
    for name in RUN_NAMES:
        pointcloud_processes.train_exactly(tmp_path / name, {"run": run})
    one, two = (checkpoint(tmp_path / name / "run") for name in RUN_NAMES)
    assert one["shown"] == two["shown"] == 320
    assert largest_difference(one, two) < 1e-7
    losses = [[line.get("train_loss", 0.0) for line in metrics(tmp_path / name / "run")] for name in RUN_NAMES]
    np.testing.assert_allclose(*losses, rtol=1e-7)
    starts = list((tmp_path / "pieces" / "run").glob("events.out.tfevents.*"))
    assert len(starts) == 2  # one a start, of the first process


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_the_run_goes_on(rank: int, solids: Path, tmp_path: Path) -> None:
    """Even with --fresh, which is meant for the first start; two processes add up in one order, so to the bit."""
    finish(train_tiny(solids, tmp_path / "whole"))
    pieces = train_tiny(solids, tmp_path / "pieces", "--fresh", restarts=3)
    wait_for(tmp_path / "pieces", 40)
    os.kill(worker(pieces, rank), signal.SIGKILL)
    told = finish(pieces)
    assert "error: " not in told
    one, two = (checkpoint(tmp_path / name) for name in RUN_NAMES)
    assert largest_difference(one, two) == 0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "pieces")
    starts = list((tmp_path / "pieces").glob("events.out.tfevents.*"))
    assert len(starts) == 2  # so the second did not start over, which removes the first's


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--batch-size", 5], "--batch-size 5: expected a multiple of the 2 processes"),
        (["--compile"], "--compile: compiles the steps of a single process, torchrun started 2"),
        (["--data", "no.npz"], "--data no.npz: no such folder or .npz file"),
    ],
)
def test_a_mistake_is_told_once(flags: list[object], message: str, solids: Path, tmp_path: Path) -> None:
    told = finish(train_tiny(solids, tmp_path / "run", *flags), status=1)
    before = told.split("Traceback")[0]  # torchrun's own, once a process has failed
    assert before.count("error: ") == 1 and f"error: {message}" in before
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    solids: Path, tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    finish(train_tiny(solids, tmp_path / "run", "--epochs", 1, processes=1))
    flags = ["--weights", tmp_path / "run", "--data", solids, "--dataset=", "--votes", 2, "--device", "cpu", "--json"]
    one = run_script("evaluate_pointcloud.py", *flags, tmp_path / "one.json")
    assert one.returncode == 0, one.stderr
    finish(torchrun(ROOT / "scripts" / "evaluate_pointcloud.py", *flags, tmp_path / "two.json"))
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


@pytest.mark.slow
def test_two_machines_train_what_two_processes_of_one_do(solids: Path, tmp_path: Path) -> None:
    """Two launchers with one process each, which meet as those of two machines do."""
    finish(train_tiny(solids, tmp_path / "whole"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test"]
    jobs = [train_tiny(solids, tmp_path / "pieces", processes=1, launch=launch) for _ in range(2)]
    for job in jobs:
        finish(job)
    one, two = (checkpoint(tmp_path / name) for name in RUN_NAMES)
    assert largest_difference(one, two) == 0
