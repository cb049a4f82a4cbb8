"""Files from strangers: each reader takes or refuses them in one line, in bounded memory, and runs none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from hostile_files import BAD, huge_png, zipped
from reader_table import READERS, point_weights
from small_images import png, write

from gan.data.datasets import load_image_set
from shared_attn.runtime.archives import leads_out, open_zip
from shared_attn.runtime.rebuilding import check_numbers

ROOT = Path(__file__).resolve().parents[1]
CASES = [(reader, what) for reader, files in BAD.items() for what in files]
NO_REFUSAL = ("cifar tar",)  # all that is small is refused


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_others_are_made_of_are_accepted(name: str, tmp_path: Path) -> None:
    trial = fuzzing.Trial(name, None, tmp_path)
    for content in trial.reader.seeds():
        assert trial.attempt(content) is None
    assert trial.tally.accepted == (0 if name in NO_REFUSAL else trial.tally.inputs)


@pytest.mark.parametrize("name, what", CASES, ids=[f"{name}: {what}" for name, what in CASES])
def test_bad_files_are_refused_in_one_line(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = BAD[name][what]
    path = tmp_path / "f" / READERS[name].name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError)) as refusal:
        READERS[name].read(path)
    message = str(refusal.value)
    assert any(words in message for words in said.split(" | ")) and str(tmp_path) in message and "\n" not in message
    assert not (tmp_path / "sprung").exists(), "a pickle was run"
    assert "Warning" not in capfd.readouterr().err


def test_bad_files_take_little_memory(tmp_path: Path) -> None:
    """All of them in one process, whose address space may grow by a gigabyte."""
    for number, (name, what) in enumerate(CASES):
        path = tmp_path / str(number) / "f" / READERS[name].name
        path.parent.mkdir(parents=True)
        path.write_bytes(BAD[name][what][0])
    code = f"""
import resource, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from pathlib import Path
from reader_table import READERS
import trimesh, trimesh.sample, PIL.Image, pyarrow.parquet
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for number, name in enumerate({[name for name, _ in CASES]!r}):
    try:
        READERS[name].read(Path({str(tmp_path)!r}, str(number), "f", READERS[name].name))
        print(name, "took", number)
    except (ValueError, OSError) as error:
        if any(word in str(error) for word in ("MemoryError", "allocate", "machine's memory")):
            print(name, number, error)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc to read the size of the address space from")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_names_that_lead_out() -> None:
    outside = ["/a", "../a", "a/../../b", "..", "a\\..\\b", "C:\\a", "C:a"]
    assert [leads_out(name) for name in outside] == [True] * len(outside)
    inside = ["a", "a/b.png", "..a/b", "a..", "a/...", "ab:c/d"]
    assert [leads_out(name) for name in inside] == [False] * len(inside)


def test_a_zip_may_shrink_what_is_small(tmp_path: Path) -> None:
    """Flat images shrink a thousandfold, which makes no bomb of them."""
    path = tmp_path / "flat.zip"
    path.write_bytes(zipped({"a/0.bmp": bytes(2**24)}))
    with open_zip(path) as archive:
        assert archive.infolist()[0].file_size == 2**24


def test_numbers_of_any_depth_are_checked() -> None:
    check_numbers({"a": [1, {"b": 2**20, "c": "x", "d": None}], "e": True})
    with pytest.raises(ValueError, match="model.a.b = 1048577, expected at most 1048576"):
        check_numbers({"a": [1, {"b": 2**20 + 1}]})


def test_in_a_folder_of_many_a_bad_image_is_skipped_and_listed(tmp_path: Path) -> None:
    write(tmp_path / "set", {f"a/{i}.png": png(i) for i in range(30)} | {"a/x.png": huge_png(50_000, 50_000)})
    data = load_image_set(str(tmp_path / "set"), 32)
    assert len(data.labels) == 30 and len(data.skipped) == 1 and "a/x.png: " in data.skipped[0]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    from pointcloud.files.user_files import find_files

    path = tmp_path / "scan.txt"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert find_files([tmp_path])[0].mistake
    with pytest.raises((ValueError, OSError), match="not a file"):
        READERS["text cloud"].read(path)


def test_scripts_refuse_in_one_line_with_status_2(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    (tmp_path / "weights.safetensors").write_bytes(point_weights()[0])
    (tmp_path / "a.gltf").write_bytes(BAD["gltf"]["a circle"][0])
    (tmp_path / "b.npy").write_bytes(BAD["npy"]["pickle"][0])
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(50, 3)))
    files = [tmp_path / name for name in ("a.gltf", "b.npy", "good.npy")]
    done = run_script("classify.py", *files, "--weights", tmp_path / "weights.safetensors")
    assert done.returncode == 2 and str(files[2]) in done.stdout and "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 2 and "go round in a circle" in told[0] and "holds Python objects" in told[1]
    (tmp_path / "wide.safetensors").write_bytes(BAD["generator weights"]["wide"][0])
    done = run_script("sample_gan.py", "--weights", tmp_path / "wide.safetensors", "--out", tmp_path / "x.png")
    assert done.returncode == 2 and "model.width = 1000000000" in done.stderr and done.stderr.count("\n") == 1
