"""The gallery of a training run: one HTML page that opens without a network, of samples over time, losses and metrics.

It reads only what lies in the run's folder, so it can be written while the run goes on.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gan.data.decoding import DAMAGE, open_image
from gan.presets import PRESETS, GanConfig
from shared_attn.runtime.files import atomic_write

TEMPLATE = Path(__file__).with_name("gallery.html")
NAME = "gallery.html"
CONFIG, METRICS, RECORD = "config.json", "metrics.jsonl", "record.json"
CLOCK = ("shown", "seconds")
MOST_POINTS = 600  # of a curve: means of neighbours where there are more
IMAGE_BYTES = 13 * 2**20  # of all grids, before base64 adds a third
MOST_GRIDS = 120
# Tried in turn until the grids fit: WebP's quality, and the share of the width and height.
SMALLER = ((92, 1.0), (85, 1.0), (75, 0.75), (70, 0.5), (60, 0.35), (50, 0.25))


def write_gallery(run: Path, out: Path | None = None) -> Path:
    """Write the page of a finished or a running run of `scripts/train_gan.py`.

    Args:
        run: the run's folder: config.json, and what there is of metrics.jsonl, samples/*.png and record.json.
        out: the page; by default gallery.html in the folder.

    Returns:
        The page's path.

    Raises:
        ValueError: in one line, when the folder is no run.
        OSError: the page cannot be written; one that was there is untouched.
    """
    run = Path(run)
    config = _read_config(run)
    lines = _read_lines(run)
    record = _read_object(run / RECORD) or {}
    finished = record.get("config") == config
    page = {
        "title": run.resolve().name,
        "shown": max((line["shown"] for line in lines), default=0),
        "total": config.get("images"),
        "seconds": max((line.get("seconds") or 0.0 for line in lines), default=0.0),
        "finished": finished,
        "command": record["command"] if finished and "command" in record else restate_command(config),
        "config": [[name, _tell(value)] for name, value in config.items()],
        "grids": _embed_grids(_list_grids(run)),
        "charts": collect_charts(lines),
    }
    out = run / NAME if out is None else Path(out)
    data = json.dumps(page, allow_nan=False).replace("<", "\\u003c")
    text = TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data)
    with atomic_write(out, "w") as file:
        file.write(text)
    return out


def collect_charts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charts of metrics.jsonl: losses together, logits together, and one of each other name.

    Each is {"title", "curves": [{"name", "points": [[shown, value or null], ...]}]}; what evaluations measure comes
    first.
    """
    curves: dict[str, list[list[Any]]] = {}
    of_training: set[str] = set()
    for line in lines:
        names = [name for name, value in line.items() if name not in CLOCK and _is_value(value)]
        if any(name.endswith("_loss") for name in names):
            of_training.update(names)
        for name in names:
            value = line[name]
            good = value is not None and math.isfinite(value)
            curves.setdefault(name, []).append([line["shown"], value if good else None])
    groups: dict[str, list[str]] = {}
    for name in sorted(curves, key=lambda name: name in of_training):
        kind = next((kind for kind in ("loss", "logit") if name.endswith(f"_{kind}")), None)
        groups.setdefault({"loss": "losses", "logit": "logits"}[kind] if kind else name, []).append(name)
    return [
        {"title": title, "curves": [{"name": name, "points": _thin(curves[name])} for name in names]}
        for title, names in groups.items()
    ]


def restate_command(config: dict[str, Any]) -> str:
    """A command that makes a run of this configuration: the nearest preset, and what differs from it."""
    defaults = {
        name: json.loads(json.dumps(dataclasses.asdict(preset), default=str)) for name, preset in PRESETS.items()
    }
    known = [field.name for field in dataclasses.fields(GanConfig)]
    changed = {
        name: [key for key in known if key in config and config[key] != values[key] and key != "fresh"]
        for name, values in defaults.items()
    }
    preset = min(changed, key=lambda name: len(changed[name]))
    words = ["python", "scripts/train_gan.py", preset]
    for key in changed[preset]:
        flag, value = key.replace("_", "-"), config[key]
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _read_config(run: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise ValueError(f"--run {run}: no such folder, expected the folder of a run")
    config = _read_object(run / CONFIG)
    if config is None:
        raise ValueError(f"--run {run}: holds no readable {CONFIG}, expected the folder of a run of train_gan.py")
    if "discriminator_steps" not in config:
        raise ValueError(f"--run {run}: a run of another kind, expected one of train_gan.py")
    return config


def _read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none: files of a running run come and go."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; the last one may be torn while the run goes on."""
    lines = []
    try:
        text = (run / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("shown"), int):
            lines.append(line)
    return lines


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _tell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _thin(points: list[list[Any]]) -> list[list[Any]]:
    """At most MOST_POINTS points: the means of runs of neighbours, each at its last clock."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    thinned = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        values = [value for _, value in part if value is not None]
        thinned.append([part[-1][0], sum(values) / len(values) if values else None])
    return thinned


def _list_grids(run: Path) -> list[tuple[int, Path]]:
    """(images shown, file) of the sample grids, oldest first; of very many an even choice with the last one."""
    grids = sorted((int(path.stem), path) for path in (run / "samples").glob("*.png") if path.stem.isdecimal())
    if len(grids) > MOST_GRIDS:
        grids = [grids[round(index * (len(grids) - 1) / (MOST_GRIDS - 1))] for index in range(MOST_GRIDS)]
    return grids


def _embed_grids(grids: Sequence[tuple[int, Path]]) -> list[dict[str, Any]]:
    """The grids as data URIs: as they are where they fit into the page, otherwise smaller."""
    contents = []
    for shown, path in grids:
        try:
            content = path.read_bytes()
            with open_image(content) as image:
                image.load()
                contents.append((shown, content, image.size))
        except DAMAGE:
            continue  # removed or damaged since it was listed
    budget = IMAGE_BYTES / max(1, len(contents))
    whole = sum(len(content) for _, content, _ in contents) <= IMAGE_BYTES
    embedded = []
    for shown, content, (width, height) in contents:
        kind, fitting = ("png", content) if whole else ("webp", _shrink(content, budget))
        source = f"data:image/{kind};base64,{base64.b64encode(fitting).decode()}"
        embedded.append({"shown": shown, "source": source, "width": width, "height": height})
    return embedded


def _shrink(content: bytes, budget: float) -> bytes:
    """A PNG as WebP of at most `budget` bytes, or the smallest that is tried."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    for quality, share in SMALLER:
        size = max(1, round(share * image.width)), max(1, round(share * image.height))
        smaller = image if size == image.size else image.resize(size, Image.Resampling.BOX)
        file = io.BytesIO()
        smaller.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= budget:
            break
    return file.getvalue()
