"""The tables of single records: what each kind of record measured, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def record_table(record: Record) -> str:
    """What a record measured: an ablation's rows, a benchmark's tables and figure, or the metrics."""
    if record["kind"] == "ablation":
        return _ablation_table(record)
    tables = record.get("tables", {})
    if "head_to_head" in tables:
        table = _head_to_head_table(tables["head_to_head"])
    elif "training_step" in tables or "training_iteration" in tables:
        parts = [_step_table(tables[name]) for name in ("training_step", "training_iteration") if name in tables]
        table = "\n".join(parts)
    elif "faults" in tables:
        table = _fault_table(tables["faults"])
    elif "precision" in tables:
        table = _precision_table(tables["precision"])
    elif "readers" in tables:
        table = _reader_table(tables["readers"])
    elif "robustness" in tables:
        table = _robustness_table(record["metrics"], tables["robustness"][0])
        table += f"\n![Robustness]({own_figure(record)})\n"
    else:
        table = markdown_table(
            ["metric", "value"], [[name, format_number(value)] for name, value in record["metrics"].items()]
        )
    if "published_costs" in tables:
        table += "\n" + _cost_table(tables["published_costs"])
    if "kernels" in tables:
        table += "\n" + _kernel_table(tables["kernels"])
    if "variants" in tables:
        table += f"\n{_variant_table(tables['variants'])}\n![Cost of attention]({own_figure(record)})\n"
    return table


def own_figure(record: Record) -> str:
    """Where the figure lies that a record has for itself, from results/."""
    return f"figures/{record['id']}.png"


def _step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A step of point networks, or an iteration of a GAN, beside its published form and the original's own code."""
    unit, rate = ("images", "s an iteration") if "images_per_second" in rows[0] else ("clouds", "s a step")
    head = ["network", rate, f"{unit} / s", "published / ours", "original / ours", "as shipped / ours", "peak MB"]
    head += ["published", "of the floor", "largest parts"]
    cells = []
    for row in rows:
        ratios = [row["speedup"], row["original_speedup"], row.get("shipped_speedup")]
        parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in list(row["shares"].items())[:4])
        cells.append(
            [f"{row['name']}, {row['precision']}", f"{row['seconds']:.3f}", f"{row[f'{unit}_per_second']:.1f}"]
            + ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            + [f"{row['peak_mb']:.0f}", f"{row['published_peak_mb']:.0f}"]
            + [f"{100 * row['floor_fraction']:.0f} %", parts]
        )
    return markdown_table(head, cells)


def _fault_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was done to trainings, how often, and how often nothing was lost."""
    cells = [[row["fault"], row["training"], str(row["tried"]), str(row["survived"])] for row in rows]
    tried, survived = (str(sum(row[name] for row in rows)) for name in ("tried", "survived"))
    return markdown_table(["fault", "training", "tried", "survived"], [*cells, ["all", "", tried, survived]])


def _precision_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Running means of learning curves: how far those of two precisions lie apart, and those of two seeds."""
    names = ("first", "last_fp32", "last_bf16", "distance", "seed_distance")
    head = ["training", "curve", "first", "last, fp32", "last, bf16", "bf16 from fp32, at most", "a seed from another"]
    cells = [[row["training"], row["curve"], *(f"{row[name]:.3f}" for name in names)] for row in rows]
    return markdown_table(head, cells)


def _robustness_table(metrics: Mapping[str, float], report: Mapping[str, Any]) -> str:
    """The means over everything, then accuracies a corruption and level; the turns and densities are in the figure."""
    named = ("overall_accuracy", "mean_class_accuracy", "mce_", "rmce_")
    means = {name: value for name, value in metrics.items() if name in named[:2] or name.startswith(named[2:])}
    table = markdown_table(["metric", "value"], [[name, format_number(value)] for name, value in means.items()])
    levels = len(next(iter(report["corruptions"].values()))["overall_accuracy"])
    head = ["overall accuracy", *(f"level {level}" for level in range(1, levels + 1)), "mean", "error / DGCNN's"]
    rows = [
        [name.replace("_", " "), *(f"{100 * accuracy:.1f} %" for accuracy in row["overall_accuracy"])]
        + [f"{100 * row['mean']:.1f} %", f"{row['corruption_error']:.2f}"]
        for name, row in report["corruptions"].items()
    ]
    return table + "\n" + markdown_table(head, rows)


def _reader_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What became of spoilt files, a row a reader and one of all."""
    counted = ("inputs", "refused", "accepted", "crashes", "hangs")
    whole = {"reader": "all", **{name: sum(row[name] for row in rows) for name in counted}}
    whole["most_mb"] = max(row["most_mb"] for row in rows)
    cells = [
        [row["reader"], *(f"{row[name]:,}" for name in counted), f"{row['most_mb']:.0f}"] for row in (*rows, whole)
    ]
    return markdown_table(["reader", *counted, "most memory, MB"], cells)


def _ablation_table(record: Record) -> str:
    """One row a variant; of several seeds mean ± sample standard deviation."""
    metrics = record["table"][0]["metrics"]
    rows = []
    for row in record["table"]:
        cells = []
        for metric in metrics:
            spread = "" if row[metric]["std"] is None else f" ± {row[metric]['std']:.2g}"
            cells.append(format_number(row[metric]["mean"]) + spread)
        name, seeds = row[record["varied"]], str(len(row["seeds"]))
        rows.append([name, *cells, seeds, format_count(row["parameters"]), format_count(row["multiply_adds"])])
    return markdown_table([record["varied"], *metrics, "seeds", "parameters", "multiply-adds"], rows)


def _head_to_head_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Modules of this project beside what they replace, and by how much they are faster."""
    head = ["ours", "original", "mode", "original, ms", "ours, ms", "times faster", "largest difference"]
    cells = []
    for row in rows:
        times = (row["original_ms"], row["ours_ms"], row["original_ms"] / row["ours_ms"])
        difference = row["largest_difference"]
        cells.append(
            [
                row["ours"],
                row["original"],
                row["mode"],
                *map("{:.1f}".format, times),
                "" if difference is None else f"{difference:.0e}",
            ]
        )
    return markdown_table(head, cells)


def _variant_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The variants side by side at the widest channels, with the most tokens at which every one of them was run."""
    dim = max(row["dim"] for row in rows)
    rows = [row for row in rows if row["dim"] == dim]
    sizes = {row["tokens"] for row in rows} - {row["tokens"] for row in rows if row["forward_ms"] is None}
    tokens = max(sizes, default=min(row["tokens"] for row in rows))
    head = [f"{tokens:,} tokens, {dim} channels", "parameters", "multiply-adds", "forward, ms", "+ backward, ms", "MB"]
    cells = [
        [row["name"], format_count(row["parameters"]), format_count(row["multiply_adds"])]
        + ["skipped" if row[name] is None else f"{row[name]:.1f}" for name in ("forward_ms", "training_ms", "peak_mb")]
        for row in rows
        if row["tokens"] == tokens
    ]
    return markdown_table(head, cells)


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table 12 of the external attention paper: reported beside counted."""
    head = ["1 x 512 x 128 x 128", "reported M", "counted M", "reported G", "counted G", "remark"]
    cells = []
    for row in rows:
        counted = row["counted"]
        parameters, operations = counted["parameters"] / 1e6, counted["multiply_adds"] / 1e9
        reported = (str(row["reported_parameters_m"]), str(row["reported_multiply_adds_g"]))
        cells.append([row["label"], reported[0], f"{parameters:.2f}", reported[1], f"{operations:.2f}", row["remark"]])
    return markdown_table(head, cells)


def _kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """GPU kernels beside the fewest bytes that could do, and the fused block beside the paper's."""
    head = ["kernels of", "mode", "B x N x C", "moved, MB", "floor, MB", "ms", "of the floor", "paper's block / ours"]
    cells = []
    for row in rows:
        size = f"{row['batch']} x {row['tokens']} x {row['channels']}"
        sizes = ["" if row[name] is None else f"{row[name]:,.0f}" for name in ("expected_mb", "floor_mb")]
        time = "unmeasured" if row["measured_ms"] is None else f"{row['measured_ms']:.3f}"
        fraction = "" if row["floor_fraction"] is None else f"{100 * row['floor_fraction']:.0f} %"
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.1f}"
        cells.append([row["what"], row["mode"], size, *sizes, time, fraction, speedup])
    return markdown_table(head, cells)


def format_number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def format_count(value: int | Mapping[str, int] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_count(number)}" for name, number in value.items())
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
