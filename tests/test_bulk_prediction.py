"""Answers about many files, by one process or several, are the same and each there once, whatever was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrun import finish, torchrun, worker

from pointcloud.files import bulk
from pointcloud.files.answer_parts import PartWriter, find_answered, merge_parts, open_parts, part_path, write_settings
from pointcloud.files.bulk import answer_all
from pointcloud.files.user_files import UserFile
from shared_attn.runtime.processes import Share

ROOT = Path(__file__).resolve().parents[1]
COUNT = 24


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of boxes and balls, and a file that cannot be read."""
    folder, random = tmp_path_factory.mktemp("clouds"), np.random.default_rng(0)
    for number in range(COUNT - 1):
        points = random.uniform(-1, 1, (60, 3))
        if number % 2:
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        (folder / str(number % 3)).mkdir(exist_ok=True)
        np.save(folder / str(number % 3) / f"{number}.npy", points)
    (folder / "torn.off").write_text("OFF\n8 6")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Echo:
    """Stands in for a network: an answer is the file's name, an odd one cannot be read; stops where it is told."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.left, self.asked = stop_after, []

    def __call__(self, files: Any, /, *, pool: ThreadPoolExecutor | None) -> Iterator[tuple[UserFile, Any]]:  # noqa: ARG002
        for file in files:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append(file.name)
            answer = {"file": str(file.path), "class": file.name}
            odd = int(file.name) % 2
            yield (
                file,
                ValueError(f"{file.path}: odd") if odd else SimpleNamespace(as_dict=lambda answer=answer: answer),
            )


def files_of(count: int) -> list[UserFile]:
    return [UserFile(Path(f"{number}.npy"), str(number)) for number in range(count)]


def expected(count: int) -> list[dict[str, str]]:
    return [
        {"file": f"{n}.npy", "error": f"{n}.npy: odd"} if n % 2 else {"file": f"{n}.npy", "class": str(n)}
        for n in range(count)
    ]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return SimpleNamespace(path=path)


@settings(deadline=None, max_examples=40)
@given(
    stops=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 6), st.binary(max_size=8)), max_size=6
    )
)
def test_answers_survive_any_stops_of_any_number_of_processes(
    stops: list[tuple[int, int, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Starts of so many processes, of which one writes so many answers before it is killed while it writes a line."""
    folder = tmp_path_factory.mktemp("parts")
    open_parts(folder, {})
    done: set[int] = set()
    for processes, rank, answers, torn in stops:
        answered = find_answered(folder, 11)
        assert {number for number in range(11) if answered[number]} == done
        left = [number for number in range(rank % processes, 11, processes) if not answered[number]]
        with PartWriter(part_path(folder, rank % processes)) as writer:
            for number in left[:answers]:
                writer.add(number, {"file": f"{number}.npy"})
                done.add(number)
        with open(part_path(folder, rank % processes), "ab") as file:
            file.write(torn.replace(b"\n", b""))
    with PartWriter(part_path(folder, 0)) as writer:
        for number in set(range(11)) - done:
            writer.add(number, {"file": f"{number}.npy"})
    assert merge_parts(folder, folder / "all.jsonl", 11) == 0
    assert read(folder / "all.jsonl") == [{"file": f"{number}.npy"} for number in range(11)]


def test_an_interrupted_start_goes_on_where_it_was(model: Any, tmp_path: Path, capsys: Any) -> None:
    path, first, second = tmp_path / "out.jsonl", Echo(stop_after=4), Echo()
    with pytest.raises(KeyboardInterrupt, match="interrupted after 4 of 9 files; run the same command again"):
        answer_all(path, files_of(9), {"up": "z"}, model, first)
    assert not path.exists()
    assert answer_all(path, files_of(9), {"up": "z", "device": "cpu"}, model, second) == 2
    assert first.asked + second.asked == [str(number) for number in range(9)]
    assert read(path) == expected(9)
    assert [entry.name for entry in (tmp_path / "out.jsonl.parts").iterdir()] == ["settings.json"]
    assert "answers to 9 files, 4 of them could not be read" in capsys.readouterr().err
    third = Echo()
    assert answer_all(path, files_of(9), {"up": "z"}, model, third) == 2
    assert third.asked == [] and "answers to all 9 files are there" in capsys.readouterr().err


def test_a_kill_between_the_merge_and_its_note_changes_nothing(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer_all(path, files_of(5), {}, model, Echo())
    whole, folder = path.read_bytes(), tmp_path / "out.jsonl.parts"
    known = json.loads((folder / "settings.json").read_text())
    known.pop("complete")
    write_settings(folder, known, complete=False)
    again = Echo()
    answer_all(path, files_of(5), {}, model, again)
    assert path.read_bytes() == whole and len(again.asked) == 5


def test_each_process_takes_its_files_and_the_first_merges(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, works = tmp_path / "out.jsonl", [Echo() for _ in range(3)]
    monkeypatch.setattr(bulk, "wait_for_all", lambda: None)
    for rank in (2, 1, 0):
        if rank == 2:  # the first process makes the folder before the others go on
            with pytest.raises(KeyboardInterrupt):
                answer_all(path, files_of(10), {}, model, Echo(stop_after=0), Share(0, 3))
        assert answer_all(path, files_of(10), {}, model, works[rank], Share(rank, 3)) == 0
    assert [work.asked for work in works] == [["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"]]
    assert read(path) == expected(10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": {"up": "y"}}, "up was 'z', is 'y'"),
        ({"files": 8}, "files was 9, is 8"),
        ({"weights": b"others"}, "weights was"),
    ],
)
def test_answers_to_another_question_are_refused(
    change: dict[str, Any], message: str, model: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer_all(tmp_path / "out", files_of(9), {"up": "z"}, model, Echo(stop_after=2))
    model.path.write_bytes(change.get("weights", b"weights"))
    files = files_of(change.get("files", 9))
    with pytest.raises(ValueError, match="holds answers to another question") as error:
        answer_all(tmp_path / "out", files, change.get("settings", {"up": "z"}), model, Echo())
    assert message in str(error.value)


def test_only_one_process_writes_a_part(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "part"):
        code = "import sys; from pathlib import Path; from pointcloud.files.answer_parts import PartWriter\n"
        code += "try:\n    PartWriter(Path(sys.argv[1])).__enter__()\nexcept ValueError as error:\n    print(error)"
        told = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "part")], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
    assert "another process is writing" in told


SCRIPTS = {
    "classify.py": ["--samplings", 2, "--up", "auto"],
    "segment.py": ["--samplings", 1, "--category", "chair", "--formats", "ply"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_of_which_one_is_killed_answer_what_one_does(
    script: str, clouds: Path, tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Both are started again by torchrun, and once more by hand."""
    flags = [
        clouds,
        *SCRIPTS[script],
        *(["--out", tmp_path / "out"] if script == "segment.py" else []),
        "--device",
        "cpu",
    ]
    one = run_script(script, *flags, "--answers", tmp_path / "one.jsonl")
    assert one.returncode == 2, one.stderr  # a file could not be read
    printed = json.loads(run_script(script, *flags, "--json").stdout)
    assert read(tmp_path / "one.jsonl") == printed and len(printed) == COUNT
    job = torchrun(ROOT / "scripts" / script, *flags, "--answers", tmp_path / "two.jsonl", restarts=2)
    part = tmp_path / "two.jsonl.parts" / "part-00001.jsonl"
    deadline = time.monotonic() + 100
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(worker(job, rank=1), signal.SIGKILL)
    told = finish(job)
    assert "answers to 24 files, 1 of them could not be read" in told
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.slow
def test_several_processes_need_a_file_for_their_answers(clouds: Path) -> None:
    told = finish(torchrun(ROOT / "scripts" / "classify.py", clouds), status=1)
    assert "error: torchrun started 2 processes, which share the files: give --answers FILE" in told
