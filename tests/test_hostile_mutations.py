"""Spoilt copies of valid files, at random, by hypothesis or guided by coverage: each reader takes or refuses them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_table import READERS, Reader

ROOT = Path(__file__).resolve().parents[1]


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


def test_no_flip_in_the_metadata_of_a_parquet_file_ends_the_process(tmp_path: Path) -> None:
    """As one did that fuzzing found: pyarrow aborts where it is asked for a column's damaged statistics."""
    trial = fuzzing.Trial("image parquet", None, tmp_path)
    valid = trial.reader.seeds()[0]
    start = len(valid) - 8 - int.from_bytes(valid[-8:-4], "little")
    for place in range(start, len(valid)):
        content = bytearray(valid)
        content[place] ^= 1 << 5
        assert trial.attempt(bytes(content)) is None, place
    assert trial.tally.refused > 100


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
    monkeypatch.setitem(READERS, "own", Reader(read, "own.txt", lambda: [b"fine"]))
    monkeypatch.setattr(fuzzing, "HANG", 0.2)
    trial = fuzzing.Trial("own", tmp_path / "kept", tmp_path / "work")
    assert trial.attempt(b"fine") is None
    assert "IndexError" in str(trial.attempt(b"raise")) and "unclear" in str(trial.attempt(b"vague"))
    begun = fuzzing._processor_seconds()
    assert "hang" in str(trial.attempt(b"long"))
    counted = trial.tally
    assert (counted.inputs, counted.accepted, counted.refused, counted.crashes, counted.hangs) == (4, 2, 1, 2, 1)
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == [b"long", b"raise", b"vague"]


@pytest.mark.slow
def test_guided_fuzzing_finds_nothing(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    """30 seconds of scripts/fuzz_readers.py; its full run is results/records/fuzzing.json."""
    pytest.importorskip("atheris", reason="coverage-guided fuzzing needs atheris")
    done = run_script("fuzz_readers.py", "--seconds", 30, "--out", tmp_path, "--json", tmp_path / "f.json")
    assert done.returncode == 0 and "configuration: " in done.stdout, done.stderr


def test_without_atheris_the_script_says_so(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError('none', name='atheris')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_script("fuzz_readers.py", "--inputs", 5, PYTHONPATH=path)
    assert done.returncode == 2 and done.stderr == "error: atheris is not installed: pip install 'eagan-eat[fuzz]'\n"
