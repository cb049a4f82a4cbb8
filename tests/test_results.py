"""Results follow from records: tables, figures that know their records, and the check that CI runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_attn.runtime import results

ROOT = Path(__file__).resolve().parents[1]


def _record(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small", "kind": "gan", "command": "python scripts/train_gan.py a", "config": {}, "commit": "0" * 40,
        "data": {"name": "cifar10", "files": {"a.zip": "f" * 64}, "split": "train"}, "seeds": [0],
        "metrics": {"fd_lite0_2k_train": 12.3456}, "parameters": {"generator": 1_500_000}, "multiply_adds": 2_000,
        "seconds": 1200.0, "machine": {"device": "cpu", "cpu": "X", "cores": 2, "threads": 2},
        "versions": {"torch": "2"}, "date": "2026-01-01", "note": "",
        "curves": {"fd": [[1, 3.0], [2, 2.0]]}, **changes,
    }  # fmt: skip


def _write(folder: Path, name: str, record: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_table_says_what_the_record_says(tmp_path: Path) -> None:
    _write(tmp_path, "a-run", _record())
    _write(tmp_path, "bench", _record(kind="benchmark"))
    records = results.load_records(tmp_path)
    table = results.summary_table(records, {"a-run": {"value": "9.9", "protocol": "FID"}})
    assert (
        "| a-run | cifar10 | fd_lite0_2k_train **12.35** | 9.9 (FID) | generator 1.5 M | 20 min | 2 cores of X |"
        in table
    )
    assert "bench" not in table
    assert "sha256 ffffffffffff" in results.detail_tables(records) and "bench" in results.detail_tables(records)


def test_incomplete_record_is_refused(tmp_path: Path) -> None:
    record = _record()
    del record["commit"]
    _write(tmp_path, "a", record)
    with pytest.raises(ValueError, match=r"a\.json: the record lacks commit"):
        results.load_records(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        results.load_records(tmp_path)


def test_figure_knows_its_records(tmp_path: Path) -> None:
    _write(tmp_path / "r", "a", _record())
    records = results.load_records(tmp_path / "r")
    results.draw_curves(records, tmp_path / "f.png")
    assert results.was_drawn_from(tmp_path / "f.png", results.fingerprint(records))
    records[0]["curves"]["fd"][0][1] = 4.0
    assert not results.was_drawn_from(tmp_path / "f.png", results.fingerprint(records))


def test_marks_are_needed() -> None:
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter"
    assert results.replace_between_marks(text, "new\n") == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter"
    with pytest.raises(ValueError, match="are missing"):
        results.replace_between_marks("no marks", "new")


def test_committed_results_follow_from_their_records(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_script("make_results.py", "--check")
    assert done.returncode == 0, done.stderr
