"""Learning curves in bf16 stay by those in fp32, and the distance that says so is one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from machine import needs_bfloat16

from shared_attn.runtime.learning_curves import largest_distance, running_means
from shared_attn.runtime.result_tables import record_table

# Largest distances of running means over a tenth of a training; see the record of the same comparison for what two
# seeds differ by.
BOUNDS = {"discriminator_loss": 0.3, "generator_loss": 0.5, "train_loss": 0.08, "train_accuracy": 0.08}


def test_the_distance_is_that_of_running_means() -> None:
    assert running_means([1, 2, 6, 4], 2) == [1.5, 4, 5]
    assert running_means([1, 3], 5) == [2]
    assert largest_distance([1, 2, 6, 4], [1, 2, 4, 4], 2) == 1
    assert math.isnan(largest_distance([1, math.nan, 2], [1, 1, 1], 1)), "which max alone would hide"
    with pytest.raises(ValueError, match="curves of 1 and 2 values"):
        largest_distance([1], [1, 2], 1)


@pytest.mark.slow
@needs_bfloat16
def test_bf16_learns_as_fp32_does(run_script: Any, tmp_path: Path) -> None:
    done = run_script("compare_precision.py", "--device", "cpu", "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    rows = {row["curve"]: row for row in record["tables"]["precision"]}
    assert rows.keys() == BOUNDS.keys()
    for name, row in rows.items():
        assert row["distance"] <= BOUNDS[name], (name, row["distance"], row["seed_distance"])
        assert row["fp32"] != row["bf16"], "two precisions that agree to the bit were one"
    assert rows["train_loss"]["last_bf16"] < 0.8 * rows["train_loss"]["first"], "it learns"
    assert "| EAT | train_loss |" in record_table(record)
