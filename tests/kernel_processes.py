"""What the tests of both packages' kernels share: processes of their own, and cases that hypothesis draws."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: str, **environment: str) -> str:
    """What another Python prints, without Triton's interpreter unless `environment` says so."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def interpret(script: str, examples: int) -> None:
    """Runs a comparison of kernels with their twins in Triton's interpreter, over so many drawn cases."""
    for needed in ("triton", "hypothesis"):
        pytest.importorskip(needed)
    assert run_python(f"tests/{script}", str(examples), TRITON_INTERPRET="1") == "equal"


def compare_drawn(compare: Callable[[Any], None], cases: Any, examples: int) -> None:
    """Calls `compare` on cases drawn from a strategy, the same ones each time."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    @seed(0)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking a failure would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def over_drawn_cases(case: Any) -> None:
        compare(case)

    over_drawn_cases()
