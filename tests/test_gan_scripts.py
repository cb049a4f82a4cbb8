"""The three GAN scripts as a user calls them: what they write, and one line with exit status 2 for a mistake."""

from __future__ import annotations

import json
import re
import runpy
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gan.generator import Generator
from gan.sampling import KIND, finish_generator
from shared_attn.runtime.weights import save_weights

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODEL = {"image_size": 32, "num_classes": 2, "width": 2, "attention": "external"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    generator = finish_generator(Generator(**MODEL), MODEL, seed=0)
    header = {"kind": KIND, "model": MODEL, "class_names": ["cat", "dog"], "data": {}, "images": 10}
    save_weights(path, generator.state_dict(), header)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "toy-test.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            name = f"{('cat', 'dog')[number % 2]}/{number}.ppm"
            archive.writestr(name, b"P6 32 32 255\n" + random.bytes(32 * 32 * 3))
    return path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a script inside this process, which has imported everything already."""

    def call(name: str, *arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(SCRIPTS))
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Done(status, *capsys.readouterr())

    return call


def fails(done: Done, *words: str) -> None:
    """Exit status 2 and one line on standard error that holds the words."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_sample_writes_a_grid_of_the_classes_asked_for(
    run_here: Callable[..., Done], weights: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    common = ("--weights", weights.parent, "--count", 6, "--classes", "dog", "0", "--truncation", 0.7)
    done = run_here("sample_gan.py", *common, "--out", first)
    assert done.returncode == 0, done.stderr
    assert "6 images, 3 a class" in done.stdout
    page = np.asarray(Image.open(first))
    assert page.shape[0] == 2 * (32 * 2 + 2)
    assert run_here("sample_gan.py", *common, "--out", second, "--interpolate").returncode == 0
    assert not np.array_equal(page, np.asarray(Image.open(second)))


def test_evaluate_prints_and_writes_the_same_values(
    run_here: Callable[..., Done], weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGAN_EAT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "values.json"
    done = run_here(
        "evaluate_gan.py",
        *("--weights", weights, "--data", images, "--metrics", "fd", "kd", "prdc", "--count", 12, "--json", out),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert list(report["metrics"]) == [
        f"{name}_lite0_12_test" for name in ("fd", "kd", "precision", "recall", "density", "coverage")
    ]
    printed = dict(line.split() for line in done.stdout.splitlines())
    assert printed.keys() == report["metrics"].keys()
    for name, value in report["metrics"].items():
        assert float(printed[name]) == pytest.approx(value, rel=1e-4)
    assert report["data"]["name"] == "toy-test.zip" and report["count"] == 12 and report["images_trained"] == 10


def test_mistakes_get_one_line(
    run_here: Callable[..., Done], weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    train = ("train_gan.py", "eagan-cifar10-small", "--out", tmp_path / "run", "--precision", "fp32", "--data")
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    fails(run_here(*train, "nowhere"), "--data nowhere", "no such file or folder")
    fails(run_here(*train, empty), f"--data {empty}", "holds no images")
    fails(run_here("train_gan.py", "eagan-cifar10-small", "--imagse", "5"), "--imagse", "--images")
    fails(run_here("train_gan.py", "eagan-cifar10-smal"), "eagan-cifar10-smal", "did you mean eagan-cifar10-small")
    fails(run_here("sample_gan.py", "--weights", weights, "--classes", "cta"), "--classes cta", "did you mean cat")
    fails(run_here("sample_gan.py", "--weights", "nowhere"), "--weights nowhere")
    fails(run_here("sample_gan.py", "--weights", weights, "--out", tmp_path / "a.jpg"), "--out", ".png")
    evaluate = ("evaluate_gan.py", "--weights", weights, "--data", images, "--metrics")
    fails(run_here(*evaluate, "fid", "is"), "--metrics fid", "--inception-weights")
    fails(run_here(*evaluate, "prdc", "--count", 5), "--count 5: expected at least 6")
    fails(run_here(*evaluate, "fod"), "--metrics fod", "fid, is, kid, fd, kd, prdc")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["train_gan.py", "sample_gan.py", "evaluate_gan.py"])
def test_help_shows_the_flags_at_once(run_script: Callable[..., Any], script: str) -> None:
    done = run_script(script, *(["eagan-cifar10-small"] if script == "train_gan.py" else []), "--help")
    assert done.returncode == 0 and "--device" in done.stdout
    loads = run_script(script, "--help", PYTHONPROFILEIMPORTTIME="1").stderr
    assert "tyro" in loads and not re.search(r"\|\s+(torch|numpy|lightning_fabric)\s*$", loads, re.MULTILINE)
