"""Files from strangers: each reader takes or refuses them in one line, in bounded memory, and runs none of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from hostile_files import BAD, huge_png, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    assert said in message and str(tmp_path) in message and "\n" not in message
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
import trimesh, trimesh.sample, PIL.Image, pyarrow.parquet, torch._dynamo
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


@pytest.mark.parametrize("name", READERS)
def test_spoilt_files_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    """A short run of scripts/fuzz_readers.py, at random."""
    tally = fuzzing.try_at_random(name, 4 if READERS[name].share < 1 else 40, seed=0, keep=tmp_path)
    assert not tally.found and tally.inputs == tally.refused + tally.accepted


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].share >= 1])
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_cut_flip_or_splice_is_taken_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    """Truncations, flipped bits, headers of one valid file before the body of another."""
    trial = fuzzing.Trial(name, None, Path(tempfile.mkdtemp(dir=tmp_path)))
    content = bytearray(data.draw(st.sampled_from(trial.reader.seeds())))
    kind = data.draw(st.sampled_from(["cut", "flip", "splice", "swap"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[place:]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "splice":
        content[place : place + 8] = data.draw(st.binary(max_size=16))
    else:
        other = data.draw(st.sampled_from(trial.reader.seeds()))
        content[place:] = other[data.draw(st.integers(0, len(other))) :]
    assert trial.attempt(bytes(content)) is None


def test_what_is_found_is_told_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        if b"long" in (content := path.read_bytes()):
            while not fuzzing._processor_seconds() > begun + fuzzing.HANG + 0.1:
                pass
        if b"raise" in content:
            raise IndexError("no refusal")
        if b"vague" in content:
            raise ValueError("something is wrong")

    begun = fuzzing._processor_seconds()
    monkeypatch.setitem(READERS, "own", fuzzing_reader(read))
    monkeypatch.setattr(fuzzing, "HANG", 0.2)
    trial = fuzzing.Trial("own", tmp_path / "kept", tmp_path / "work")
    assert trial.attempt(b"fine") is None
    assert "IndexError" in str(trial.attempt(b"raise")) and "unclear" in str(trial.attempt(b"vague"))
    begun = fuzzing._processor_seconds()
    assert "hang" in str(trial.attempt(b"long"))
    counted = trial.tally
    assert (counted.inputs, counted.accepted, counted.refused, counted.crashes, counted.hangs) == (4, 2, 1, 2, 1)
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == [b"long", b"raise", b"vague"]


def fuzzing_reader(read: object) -> object:
    from reader_table import Reader

    return Reader(read, "own.txt", lambda: [b"fine"])  # type: ignore[arg-type]


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


def test_scripts_refuse_in_one_line_with_status_2(tmp_path: Path, run_script: object) -> None:
    (tmp_path / "weights.safetensors").write_bytes(point_weights()[0])
    (tmp_path / "a.gltf").write_bytes(BAD["gltf"]["a circle"][0])
    (tmp_path / "b.npy").write_bytes(BAD["npy"]["pickle"][0])
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(50, 3)))
    files = [tmp_path / name for name in ("a.gltf", "b.npy", "good.npy")]
    done = run_script("classify.py", *files, "--weights", tmp_path / "weights.safetensors")  # type: ignore[operator]
    assert done.returncode == 2 and str(files[2]) in done.stdout and "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 2 and "go round in a circle" in told[0] and "holds Python objects" in told[1]
    (tmp_path / "wide.safetensors").write_bytes(BAD["generator weights"]["wide"][0])
    done = run_script("sample_gan.py", "--weights", tmp_path / "wide.safetensors", "--out", tmp_path / "x.png")  # type: ignore[operator]
    assert done.returncode == 2 and "model.width = 1000000000" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_guided_fuzzing_finds_nothing(tmp_path: Path, run_script: object) -> None:
    """30 seconds of scripts/fuzz_readers.py; its full run is results/records/fuzzing.json."""
    pytest.importorskip("atheris", reason="coverage-guided fuzzing needs atheris")
    done = run_script("fuzz_readers.py", "--seconds", 30, "--out", tmp_path, "--json", tmp_path / "f.json")  # type: ignore[operator]
    assert done.returncode == 0 and "configuration: " in done.stdout, done.stderr


def test_without_atheris_the_script_says_so(tmp_path: Path, run_script: object) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError('none', name='atheris')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_script("fuzz_readers.py", "--inputs", 5, PYTHONPATH=path)  # type: ignore[operator]
    assert done.returncode == 2 and done.stderr == "error: atheris is not installed: pip install 'eagan-eat[fuzz]'\n"
