"""An ablation's record: means and deviations of runs that differ in one field and the seed, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from shared_attn.runtime import results
from shared_attn.runtime.ablation import parse_varied, summarise_runs, write_ablation


def _run(folder: Path, attention: str, seed: int, accuracy: float, **config: Any) -> Path:
    run = folder / f"{attention}-{seed}"
    run.mkdir()
    record = {
        "name": "x", "kind": "pointcloud", "command": "c", "commit": "0" * 40, "data": {"name": "d"}, "seeds": [seed],
        "config": {"attention": attention, "seed": seed, "out": str(run), "epochs": 2, **config},
        "metrics": {"overall_accuracy": accuracy}, "parameters": 10, "multiply_adds": 20, "seconds": 3.0,
        "machine": {"cpu": "X", "threads": 1}, "versions": {"torch": "2"}, "date": "2026-01-01", "curves": {"a": []},
    }  # fmt: skip
    (run / "record.json").write_text(json.dumps(record))
    return run


def test_rows_hold_mean_and_deviation_best_first(tmp_path: Path) -> None:
    accuracies = {("a", 0): 0.5, ("a", 1): 0.7, ("b", 0): 0.8, ("b", 1): 0.8}
    runs = [_run(tmp_path, *key, value) for key, value in accuracies.items()]
    record = write_ablation(tmp_path / "ablation.json", runs, "attention", name="compared")
    assert [row["attention"] for row in record["table"]] == ["b", "a"]
    row = record["table"][1]["overall_accuracy"]
    assert row["mean"] == pytest.approx(0.6)
    assert row["std"] == pytest.approx(0.02**0.5)
    assert row["values"] == [0.5, 0.7]
    assert record["seconds"] == 12.0
    assert record["seeds"] == [0, 1]
    assert "attention" not in record["config"] and record["config"]["epochs"] == 2
    (loaded,) = results.load_records(tmp_path)
    text = results.detail_tables([loaded])
    assert "| a | 0.6 ± 0.14 | 2 | 10 | 20 |" in text
    assert results.summary_table([loaded], {}).count("\n") == 2, "an ablation is no model of its own"


def test_a_distance_is_best_where_it_is_least() -> None:
    records = [
        {"config": {"attention": name, "seed": 0}, "metrics": {"fd_lite0_2k": value}, "parameters": 1,
         "multiply_adds": 1, "seconds": 1.0} for name, value in (("far", 9.0), ("near", 3.0))
    ]  # fmt: skip
    rows = summarise_runs(records, "attention")
    assert [row["attention"] for row in rows] == ["near", "far"]
    assert rows[0]["fd_lite0_2k"]["std"] is None


def test_runs_that_differ_otherwise_are_refused(tmp_path: Path) -> None:
    runs = [_run(tmp_path, "a", 0, 0.5), _run(tmp_path, "b", 0, 0.5, epochs=3)]
    with pytest.raises(ValueError, match="differ in epochs"):
        write_ablation(tmp_path / "ablation.json", runs, "attention", name="unequal")
    assert not (tmp_path / "ablation.json").exists()
    with pytest.raises(ValueError, match="at least one"):
        write_ablation(tmp_path / "ablation.json", [], "attention", name="empty")


def test_script_trains_each_variant_and_goes_on_where_it_stopped(
    run_script: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    sizes = ("epochs=1", "warmup-epochs=0", "norm-clouds=8", "num-points=64", "num-centres=8", "num-neighbours=4")
    small = (
        *sizes,
        "neighbour-channels=16",
        "embed-channels=8",
        "fuse-channels=16",
        "head-channels=16",
        "batch-size=64",
    )
    arguments = (
        "eat-shapes-small",
        "--attention",
        "external",
        "none",
        "--seeds",
        0,
        "--out",
        tmp_path,
        "--flags",
        *small,
    )
    done = run_script("compare_attention.py", *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert {row["attention"] for row in record["table"]} == {"external", "none"}
    again = run_script("compare_attention.py", *arguments)
    assert again.returncode == 0
    assert "seed 0" not in again.stdout, "finished trainings are not repeated"


def test_any_flag_can_vary() -> None:
    assert parse_varied("drop-path=0,0.1") == ("drop_path", ("0", "0.1"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["eat-shapes-small", "--attention", "extrenal"], "extrenal"),
        (["eat-shapes-small", "--attention", "none", "--flags", "epochs=x"], "none-0"),
        (["eat-huge"], "eat-huge"),
        (["eat-shapes-small", "--vary", "form"], "--vary form: expected name=value,value"),
        (["eat-shapes-small", "--vary", "form=round"], "round-0"),
    ],
)
def test_script_tells_mistakes(
    run_script: Callable[..., CompletedProcess[str]], tmp_path: Path, arguments: list[str], word: str
) -> None:
    done = run_script("compare_attention.py", *arguments, "--out", tmp_path / "c")
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
