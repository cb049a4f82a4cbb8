"""A run's gallery: what lies in the folder stands in the page, which needs nothing else and stays small."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan import gallery
from gan.gallery import collect_charts, restate_command, write_gallery
from gan.presets import PRESETS, GanConfig

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def as_json(config: GanConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that still goes on: two grids, a torn last line, no record."""
    folder = tmp_path / "runs" / "</script><b>a"
    (folder / "samples").mkdir(parents=True)
    config = dataclasses.replace(PRESETS["eagan-cifar10-small"], data="my images", batch_size=16, seed=3)
    (folder / "config.json").write_text(json.dumps(as_json(config)))
    rows: list[dict[str, Any]] = [
        {"shown": 10, "seconds": 1.0, "discriminator_loss": 2.0, "generator_loss": 0.5, "real_logit": 0.1},
        {"shown": 20, "seconds": 2.0, "discriminator_loss": None, "generator_loss": 0.25, "real_logit": 0.2},
        {"shown": 20, "seconds": 3.0, "fd_lite0_2k_train": 300.0},
        {"shown": 40, "seconds": 4.5, "fd_lite0_2k_train": 200.0, "kd_lite0_2k_train": 0.5},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"shown": 50, "generator_l')
    random = np.random.default_rng(0)
    for shown in (20, 40):
        image = Image.fromarray(random.integers(0, 256, (60, 90, 3), dtype=np.uint8))
        image.save(folder / "samples" / f"{shown:010d}.png")
    return folder


def read_page(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def decode(grid: dict[str, Any]) -> bytes:
    return base64.b64decode(grid["source"].partition(",")[2])


def test_the_page_holds_what_lies_in_the_folder(run: Path) -> None:
    path = write_gallery(run)
    assert path == run / "gallery.html"
    page = read_page(path)
    assert (page["title"], page["shown"], page["seconds"], page["finished"]) == (run.name, 40, 4.5, False)
    assert [grid["shown"] for grid in page["grids"]] == [20, 40]
    for grid in page["grids"]:  # unchanged, as they fit
        assert decode(grid) == (run / "samples" / f"{grid['shown']:010d}.png").read_bytes()
        assert (grid["width"], grid["height"]) == (90, 60)
    charts = {chart["title"]: {c["name"]: c["points"] for c in chart["curves"]} for chart in page["charts"]}
    assert list(charts) == ["fd_lite0_2k_train", "kd_lite0_2k_train", "losses", "logits"]
    assert charts["losses"] == {
        "discriminator_loss": [[10, 2.0], [20, None]],
        "generator_loss": [[10, 0.5], [20, 0.25]],
    }
    assert charts["fd_lite0_2k_train"] == {"fd_lite0_2k_train": [[20, 300.0], [40, 200.0]]}
    assert dict(page["config"])["data"] == "my images" and dict(page["config"])["betas"] == "0.0 0.99"


def test_the_page_needs_no_network_and_no_text_breaks_out_of_it(run: Path) -> None:
    text = write_gallery(run).read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    tags: list[str] = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, _: tags.append(tag)  # type: ignore[method-assign,assignment]
    parser.feed(text)
    assert tags.count("script") == 2 and "b" not in tags and "link" not in tags


def test_grids_that_do_not_fit_become_smaller(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in range(60, 400, 20):
        (run / "samples" / f"{shown:010d}.png").write_bytes((run / "samples" / "0000000020.png").read_bytes())
    monkeypatch.setattr(gallery, "IMAGE_BYTES", 60_000)
    monkeypatch.setattr(gallery, "MOST_GRIDS", 8)
    (run / "samples" / "0000000380.png").write_bytes(b"torn")
    grids = read_page(write_gallery(run))["grids"]
    assert 5 <= len(grids) <= 8 and grids[0]["shown"] == 20
    assert sum(len(decode(grid)) for grid in grids) <= 60_000
    for grid in grids:
        with Image.open(io.BytesIO(decode(grid))) as image:
            assert image.format == "WEBP"
            assert image.width / image.height == pytest.approx(1.5, rel=0.1)


def test_long_curves_are_thinned_to_means() -> None:
    lines = [{"shown": 10 * (n + 1), "generator_loss": float(n) if n % 7 else None} for n in range(1500)]
    (chart,) = collect_charts(lines)
    points = chart["curves"][0]["points"]
    assert len(points) == 500 and points[-1][0] == 15_000
    for place, (shown, value) in enumerate(points):
        part = [float(n) for n in range(3 * place, 3 * place + 3) if n % 7]
        assert shown == 10 * (3 * place + 3) and value == pytest.approx(sum(part) / len(part))


def test_a_number_that_is_not_finite_leaves_a_gap(run: Path) -> None:
    with open(run / "metrics.jsonl", "w") as file:
        file.write('{"shown": 10, "generator_loss": NaN}\n{"shown": 20, "generator_loss": 1.0}\n[1]\n')
    (chart,) = read_page(write_gallery(run))["charts"]
    assert chart["curves"][0]["points"] == [[10, None], [20, 1.0]]


def test_a_restated_command_makes_the_same_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import command_line  # type: ignore[import-not-found]

    base = PRESETS["eagan-cifar10"]
    changes: list[dict[str, Any]] = [
        {},
        {"out": Path("runs/a b"), "images": 5, "flip": False},
        {"augment": ("color", "cutout"), "attention_options": ("memory_size=32",), "betas": (0.1, 0.9)},
    ]
    for change in changes:
        config = dataclasses.replace(base, **change)
        words = shlex.split(restate_command(as_json(config)))
        assert words[:2] == ["python", "scripts/train_gan.py"]
        assert command_line.parse(GanConfig, words[2:], presets=PRESETS, description="") == config
    for name, preset in PRESETS.items():
        assert restate_command(as_json(preset)) == f"python scripts/train_gan.py {name}"


def test_a_finished_run_tells_its_own_command(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "record.json").write_text(json.dumps({"config": config, "command": "python x"}))
    page = read_page(write_gallery(run))
    assert page["finished"] and page["command"] == "python x"
    (run / "record.json").write_text(json.dumps({"config": {**config, "images": 7}, "command": "python x"}))
    page = read_page(write_gallery(run))  # resumed since, to go on for longer
    assert not page["finished"] and "--batch-size 16" in page["command"]


def test_mistakes_are_one_line_and_an_old_page_stays(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        write_gallery(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no readable config.json"):
        write_gallery(tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    with pytest.raises(ValueError, match="a run of another kind"):
        write_gallery(tmp_path)
    write_gallery(run, tmp_path / "page.html")
    before = (tmp_path / "page.html").read_bytes()
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        write_gallery(run, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == before


def test_a_run_without_anything_yet_has_a_page(run: Path) -> None:
    for path in [run / "metrics.jsonl", *(run / "samples").iterdir()]:
        path.unlink()
    page = read_page(write_gallery(run))
    assert page["grids"] == page["charts"] == [] and page["shown"] == 0


def test_the_script_writes_the_page(run_script: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    done = run_script("draw_gallery.py", "--run", run, "--out", tmp_path / "page.html")
    assert done.returncode == 0 and read_page(tmp_path / "page.html")["shown"] == 40, done.stderr
    done = run_script("draw_gallery.py", "--run", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.startswith("error: --run") and done.stderr.count("\n") == 1
