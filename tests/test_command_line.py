"""Every script: help within a second, near-miss suggestions, one line and exit status 2 for a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.name != "command_line.py")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_no_torch(script: str) -> None:
    """torch alone takes longer than a second to import: help must not need it."""
    code = (
        f"import sys, runpy; sys.argv = [{script!r}, '--help']; sys.path.insert(0, 'scripts')\n"
        f"try: runpy.run_path('scripts/{script}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--" in done.stdout
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_flag_is_one_line_with_status_2(script: str, run_script: Run) -> None:
    preset = {
        "train_gan.py": ["eagan-cifar10-small"],
        "train_pointcloud.py": ["eat-small"],
        "compare_attention.py": ["eat-small"],
    }.get(script, [])
    done = run_script(script, *preset, "--no-such-flag-at-all", "3")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--no-such-flag-at-all" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "right"),
    [
        ("train_gan.py", ["eagan-cifar10-small", "--batch-sise", "3"], "--batch-size"),
        ("train_pointcloud.py", ["eat-small", "--epoch", "3"], "--epochs"),
        ("sample_gan.py", ["--trucation", "0.7"], "--truncation"),
        ("train_gan.py", ["eagan-cifar10-smal"], "eagan-cifar10-small"),
        ("classify.py", ["a.off", "--weihgts", "x"], "--weights"),
    ],
)
def test_near_miss_is_suggested(script: str, arguments: list[str], right: str, run_script: Run) -> None:
    done = run_script(script, *arguments)
    assert done.returncode == 2
    assert right in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
