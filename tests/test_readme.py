"""Every command and every line of Python in the README runs, in its order; long ones shrunk by further flags."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Flags that shrink a command; they come last and so replace the README's. What the README downloads is made here.
TINY_GAN = (
    "--images 64 --warm-up 64 --batch-size 16 --generator-width 4 --discriminator-width 4 --evaluate-every 64 "
    "--log-every 1"
)
SHRINK = {
    "train_gan.py": f"{TINY_GAN} --evaluation-samples 8 --evaluation-references 8 --device cpu --precision fp32",
    "sample_gan.py": "--count 8",
    "evaluate_gan.py": "--count 8",
    "train_pointcloud.py": "--epochs 1 --warmup-epochs 0.1 --num-points 512 --norm-clouds 64",
    "evaluate_pointcloud.py": "",
    "prepare_data.py": "",
    "classify.py": "",
    "segment.py": "",
    "export_model.py": "--num-points 1024 --batch-size 1",
    "benchmark_attention.py": "--help",  # minutes; its measuring is tested in test_benchmark.py
    "benchmark_training.py": "--help",
    "visualise_attention.py": "",
    "app.py": "--help",  # serves until it is stopped; test_page.py and test_page_browser.py do that
    "compare_attention.py": "--attention external --seeds 0 --flags epochs=1 warmup-epochs=0.1 norm-clouds=64",
}
NOT_RUN = ("source .venv/bin/activate",)


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`(python scripts/[^`]+)`", README)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in (*lines, *inline) if line and line not in NOT_RUN]


def _make_data(folder: Path) -> None:
    """A mesh, an unpacked ModelNet40 of a few meshes and a few pictures, under the names the README uses."""
    from PIL import Image

    from shared_attn.shapes import create_mesh

    create_mesh("chair", seed=5).save(folder / "chair.off")
    for name in ("chair", "table"):
        for split, seeds in (("train", range(0, 32, 2)), ("test", range(1, 9, 2))):
            meshes = folder / "data" / "ModelNet40" / name / split
            meshes.mkdir(parents=True)
            for seed in seeds:
                create_mesh(name, seed=seed).save(meshes / f"{name}_{seed:04d}.off")
    random = np.random.default_rng(0)
    for place in range(32):
        picture = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        target = folder / "cifar10" / ("cat", "dog")[place % 2]
        target.mkdir(parents=True, exist_ok=True)
        picture.save(target / f"{place}.png")


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    _make_data(tmp_path)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # tests share two cores
    for command in sorted(_commands(), key=lambda command: "prepare_data.py" not in command):  # data first
        words = shlex.split(command)
        if words[0] in ("make", "pip"):
            continue
        assert words[0] == "python", f"a command that no test knows: {command}"
        script = Path(words[1]).name
        words = [sys.executable, *words[1:], *shlex.split(SHRINK[script])]
        words = ["./cifar10" if word == "cifar10" else word for word in words]  # the name would download
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for file in ("runs/eat/weights.safetensors", "runs/eagan/weights.safetensors", "grid.png", "out"):
        assert (tmp_path / file).exists(), file


def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)  # the README is ours
        if "y" in names:
            assert names["y"].shape == names["x"].shape  # type: ignore[attr-defined]


def test_make_knows_the_readmes_targets() -> None:
    targets = [command.split()[1] for command in _commands() if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"demo": "scripts/demo.py", "test": "pytest"}[target] in done.stdout


@pytest.mark.slow
def test_demo_goes_through(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--quick", "--out", str(tmp_path)], cwd=ROOT, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("samples.png", "confusion.png", "segmented.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "segmented.html").read_text(encoding="utf-8")
    assert "webgl2" in page and 'src="http' not in page
    assert all(
        word in done.stdout for word in ("overall_accuracy", "instance_mean_iou", "expected", "Next, with real data")
    )
