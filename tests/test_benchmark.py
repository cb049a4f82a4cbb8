"""The benchmark: its two blocks compute one function, and its script writes what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from shared_attn import list_attentions
from shared_attn.benchmark import time_block, time_in_turns, time_variants

CPU = torch.device("cpu")


@pytest.mark.parametrize("training", [False, True])
def test_both_blocks_compute_the_same(training: bool) -> None:
    timing = time_block(16, 8, batch=2, repeats=1, training=training, device=CPU)
    assert timing.largest_difference < 1e-5
    assert min(timing.paper_ms, timing.folded_ms, timing.folded_from_map_ms) > 0
    assert timing.ratio == timing.paper_ms / timing.folded_ms


def test_competitors_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    times = time_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3, CPU)  # type: ignore[misc]
    assert order == list("abababab")
    assert set(times) == {"a", "b"}


def test_what_costs_too_much_is_listed_but_not_run() -> None:
    rows = {row.name: row for row in time_variants(["external", "self"], 16, [8], repeats=1, limit=150_000, device=CPU)}
    assert rows["external"].forward_ms is not None
    assert rows["self"].forward_ms is rows["self"].training_ms is None
    assert rows["self"].multiply_adds > 150_000
    with pytest.raises(ValueError, match="unknown attention 'selfish'"):
        time_variants(["selfish"], 16, [8], device=CPU)


def test_script_writes_one_object(run_script: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    sizes = ("--channels", 16, "--sides", 4, 8, "--repeats", 1)
    done = run_script("benchmark_attention.py", *sizes, "--threads", 1, "--device", "cpu", "--json", path)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["block"]["forward"]["ratio"] > 0
    assert [(row["name"], row["side"]) for row in written["variants"]] == [
        (name, side) for side in (4, 8) for name in list_attentions()
    ]
    assert "times faster" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--sides", 0], "--sides"), (["--attention", "extrenal"], "extrenal"), (["--json", "none/x.json"], "--json")],
)
def test_script_tells_mistakes_in_one_line(
    run_script: Callable[..., CompletedProcess[str]], arguments: list[object], word: str
) -> None:
    done = run_script("benchmark_attention.py", *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
