"""One record from many trainings that differ in one field and in the seed: mean and deviation a value of the field."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.results import read_record

__all__ = ["parse_varied", "summarise_runs", "write_ablation"]

# Fields of a run's configuration that follow from where and when it ran.
PLACES = ("out", "device", "fresh")


def parse_varied(text: str) -> tuple[str, tuple[str, ...]]:
    """The configuration's field and its values that ``form=offset,plain`` names.

    Raises:
        ValueError: there is no name or an empty value.
    """
    name, _, values = text.partition("=")
    if not all((name, *values.split(","))):
        raise ValueError(f"--vary {text}: expected name=value,value")
    return name.replace("-", "_"), tuple(values.split(","))


def write_ablation(path: Path | str, runs: Sequence[Path], field: str, *, name: str) -> dict[str, Any]:
    """Writes the record of an ablation from its runs' records.

    Args:
        path: the ablation's record.
        runs: the folders of the finished runs, each with its ``record.json``.
        field: the configuration's field that was varied, beside the seed.
        name: what the results call the ablation.

    Returns:
        The record: that of the first run with ``kind`` "ablation", all seeds, the sum of the seconds, and ``table``,
        one row a value of the field (see :func:`summarise_runs`).

    Raises:
        ValueError: there are no runs, or two differ in more than the field and the seed.
        OSError: a record is missing or cannot be read.
    """
    records = [read_record(run / "record.json") for run in runs]
    if not records:
        raise ValueError("an ablation needs at least one finished run")
    _check_alike(records, field)
    table = summarise_runs(records, field)
    first = records[0]
    fixed = {key: value for key, value in first["config"].items() if key not in (field, "seed", *PLACES)}
    record = {
        **first,
        "name": name,
        "kind": "ablation",
        "config": fixed,
        "commit": ", ".join(sorted({record["commit"] for record in records})),
        "seeds": sorted({record["config"]["seed"] for record in records}),
        "metrics": {f"{row[field]}_{metric}": row[metric]["mean"] for row in table for metric in row["metrics"]},
        "parameters": None,
        "multiply_adds": None,
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "curves": {},
        "note": "",
        "varied": field,
        "table": table,
    }
    with atomic_write(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    return record


def summarise_runs(records: Sequence[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
    """One row for each value of ``field``, the best mean of the first metric first (a distance: the least).

    A row holds the value under the field's name, ``seeds``, ``parameters``, ``multiply_adds``, ``seconds`` (mean), the
    names of its ``metrics``, and under each metric's name its ``mean``, ``std`` (of the sample; null for one seed) and
    ``values`` in the order of the seeds.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["config"]["seed"]):
        groups.setdefault(str(record["config"][field]), []).append(record)
    rows = []
    for value, members in groups.items():
        names = list(members[0]["metrics"])
        row: dict[str, Any] = {
            field: value,
            "seeds": [member["config"]["seed"] for member in members],
            "parameters": members[0]["parameters"],
            "multiply_adds": members[0]["multiply_adds"],
            "seconds": round(statistics.mean(member["seconds"] for member in members), 1),
            "metrics": names,
        }
        for name in names:
            values = [member["metrics"][name] for member in members]
            std = statistics.stdev(values) if len(values) > 1 else None
            row[name] = {"mean": statistics.mean(values), "std": std, "values": values}
        rows.append(row)
    metric = rows[0]["metrics"][0]
    distance = metric.startswith(("fd_", "kd_", "fid", "kid"))
    return sorted(rows, key=lambda row: row[metric]["mean"] if distance else -row[metric]["mean"])


def _check_alike(records: Sequence[Mapping[str, Any]], field: str) -> None:
    first = records[0]["config"]
    for record in records[1:]:
        config = record["config"]
        different = [key for key in first if config.get(key) != first[key] and key not in (field, "seed", *PLACES)]
        if different:
            raise ValueError(f"the runs of an ablation differ in {', '.join(different)}, not only in {field} and seed")
