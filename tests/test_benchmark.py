"""The benchmark: what is compared computes one function, and the script writes what it measured."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from torch import Tensor

from shared_attn import list_attentions
from shared_attn.benchmark import time_in_turns, time_variants
from shared_attn.head_to_head import compare_with_originals
from shared_attn.memory import measure_peak_bytes
from shared_attn.published_costs import compare_costs
from shared_attn.runtime import results

CPU = torch.device("cpu")


def test_originals_compute_the_same() -> None:
    rows = list(compare_with_originals(16, 8, batch=2, repeats=1, device=CPU))
    keys = [(row.key, row.mode) for row in rows]
    assert len(keys) == len(set(keys)) == (5 if importlib.util.find_spec("timm") is None else 7)
    for row in rows:
        assert min(row.ours_ms, row.original_ms) > 0
        assert row.ratio == row.original_ms / row.ours_ms
        assert row.ours in str(row)
        assert (row.largest_difference is None) == (row.original == "self-attention")
        assert row.largest_difference is None or row.largest_difference < 1e-5


def test_competitors_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    times = time_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3, CPU)  # type: ignore[misc]
    assert order == list("abababab")
    assert set(times) == {"a", "b"}


def test_what_costs_too_much_is_listed_but_not_run() -> None:
    rows = {
        row.name: row for row in time_variants(["external", "self"], [16], [8], repeats=1, limit=150_000, device=CPU)
    }
    assert rows["external"].forward_ms is not None
    assert rows["self"].forward_ms is rows["self"].training_ms is None
    assert rows["self"].multiply_adds > 150_000
    assert rows["self"].peak_mb is None
    with pytest.raises(ValueError, match="unknown attention 'selfish'"):
        time_variants(["selfish"], [16], [8], device=CPU)


def test_memory_is_what_lives_at_one_time() -> None:
    def three_at_most() -> Tensor:
        x = torch.empty(1000)
        for _ in range(5):
            y = x + 1
            x = y.mul_(2)
        return torch.cat([x, x])

    assert measure_peak_bytes(three_at_most, CPU) == 4 * 3000
    rows = {row.name: row for row in time_variants(["external", "simplified_self"], [16], [16], repeats=1, device=CPU)}
    external, quadratic = rows["external"].peak_mb, rows["simplified_self"].peak_mb
    assert external is not None
    assert quadratic is not None
    assert external > 256 * 64 * 4 / 1e6, "at least the logits"


def test_published_costs_are_reported_beside_counted_ones() -> None:
    rows = {row.label: row for row in compare_costs()}
    folded, paper = rows["external, folded here"].counted, rows["external, paper's form"].counted
    assert paper.multiply_adds > 6 * folded.multiply_adds
    for row in rows.values():
        assert row.remark
        if "folded" not in row.label:
            assert abs(row.counted.multiply_adds / 1e9 / row.reported_multiply_adds_g - 1) < 0.08
            assert abs(row.counted.parameters / 1e6 / row.reported_parameters_m - 1) < 0.08


def test_script_writes_one_object(run_script: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    sizes = ("--channels", 16, "--sides", 4, 8, "--original-side", 8, "--repeats", 1)
    done = run_script("benchmark_attention.py", *sizes, "--threads", 1, "--device", "cpu", "--json", path)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["metrics"]["block_on_tokens_forward_speedup"] > 0
    assert [(row["name"], row["tokens"]) for row in written["tables"]["variants"]] == [
        (name, side * side) for side in (4, 8) for name in list_attentions()
    ]
    assert "self-attention" in done.stdout
    kernels = written["tables"]["kernels"]
    assert kernels[0]["floor_mb"] > 0 and kernels[0]["measured_ms"] is None
    assert "unmeasured" in done.stdout
    path.rename(tmp_path / "bench.json")
    (record,) = results.load_records(tmp_path)
    text = results.detail_tables([record])
    assert "figures/bench.png" in text
    assert "| attention | forward | 64 x 1024 x 256 | 101 | 67 | unmeasured |" in text
    assert "reported G" in text
    assert "| 64 tokens, 16 channels |" in text
    assert all(f"\n| {name} |" in text for name in list_attentions())
    results.draw_scaling(record, tmp_path / "figure.png")
    assert results.was_drawn_from(tmp_path / "figure.png", results.fingerprint([record]))


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
