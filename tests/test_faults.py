"""Faults: kills, full disks, lost data and memory, signals and a second training lose nothing that was saved.

What is tried on whole trainings is `scripts/try_faults.py`: each run that a fault has ended is started again, and ends
in the bits of one that nothing happened to. The trials themselves are tried on a training that does lose something.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_attn.runtime import folder_lock, progress, record_lock
from shared_attn.runtime.checkpoint import FRESH, NAME, load_checkpoint, save_checkpoint
from shared_attn.runtime.faults.inspection import find_damage
from shared_attn.runtime.files import atomic_write, remove_leftovers
from shared_attn.runtime.folder_lock import lock_folder, one_in_a_folder
from shared_attn.runtime.interrupt import PREEMPTED, Interrupt, Preempted
from shared_attn.runtime.memory_shortage import tell_shortage
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.run_folder import open_run

ROOT = Path(__file__).resolve().parents[1]
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

# A process that holds a folder's lock, with a forked child as a training with workers has; told to leave torch alone.
HOLDER = """
import importlib.util, os, pathlib, sys, time
spec = importlib.util.spec_from_file_location("folder_lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.lock_folder(pathlib.Path(sys.argv[2])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


@dataclass(frozen=True)
class _Config:
    batch_size: int = 64


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has locked tmp_path, and the number of its forked child, which outlives it."""
    command = [sys.executable, "-c", HOLDER, folder_lock.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    yield process, worker
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


# The lock.


def test_a_second_training_is_refused_and_told_which_one_is_first(
    holder: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    import socket

    expected = rf"^--out {tmp_path}: process {holder[0].pid} on {socket.gethostname()}, since 2\S+, is training in it"
    with pytest.raises(ValueError, match=expected) as error, lock_folder(tmp_path):
        pass
    assert "\n" not in str(error.value)


def test_a_killed_training_holds_no_lock_even_if_its_workers_live_on(
    holder: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    process, worker = holder
    process.kill()
    process.wait()
    os.kill(worker, 0)  # lives
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_readers_need_no_lock(holder: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    assert holder[0].poll() is None
    save_checkpoint(tmp_path, {"shown": 1})
    open_run(tmp_path, _Config())  # outside a training
    assert load_checkpoint(tmp_path) == {"shown": 1}


def test_a_training_frees_its_folder_when_it_returns_and_when_it_raises(tmp_path: Path) -> None:
    @one_in_a_folder
    def train(fails: bool) -> None:
        open_run(tmp_path, _Config())
        with pytest.raises(ValueError, match="this process is training in it"):
            open_run(tmp_path, _Config())
        if fails:
            raise KeyError("kept alive by its traceback")

    with pytest.raises(KeyError) as kept:
        train(True)
    train(False)
    train(False)
    assert kept.value


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_training_is_warned_and_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with lock_folder(tmp_path):
        pass
    assert f"warning: --out {tmp_path}: its file system has no locks ({os.strerror(number)})" in capsys.readouterr().err
    monkeypatch.setattr(record_lock, "fcntl", None)
    with lock_folder(tmp_path):
        pass
    assert "this system has no record locks" in capsys.readouterr().err


# Writing.


def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    for call in ("fsync", "replace"):

        def fail(*_arguments: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError) as error, atomic_write(path, "w") as file:
                file.write("new")
        assert str(error.value) == f"{path}: cannot be written (No space left on device)"
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_an_error_about_another_file_stays_about_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), atomic_write(tmp_path / "a"):
        open(tmp_path / "missing")  # noqa: SIM115


def test_what_killed_processes_left_half_written_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    (tmp_path / "samples").mkdir()
    kept = [f".a.png.{os.getppid()}.tmp", ".lock", "b.tmp", ".notes.tmp", ".config.json"]
    for name in (*kept, f"samples/.0008.png.{done.pid}.tmp", f".checkpoint.new.pt.{os.getpid()}.tmp"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_starting_over_removes_the_configuration_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between must not leave a checkpoint that another configuration would take for its own."""
    open_run(tmp_path, _Config(1))
    for shown in (1, 2):
        save_checkpoint(tmp_path, {"shown": shown})
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (removed.append(path.name), unlink(path, **options)))
    open_run(tmp_path, _Config(2), fresh=True)
    assert {"checkpoint.pt", "checkpoint.previous.pt"} < set(removed)
    assert [name for name in removed if not name.endswith(".tmp")][-1] == "config.json"


@pytest.mark.parametrize("torn", ['{"sho', '{"shown": 1, "seconds": 0.1}\n{"shown": 2, "se', "\0\0\0"])
def test_a_torn_line_of_metrics_is_cut_on_resuming(torn: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(torn)
    with Progress(tmp_path, total=3, done=torn.count("seconds")) as bar:
        bar.advance(1)
        bar.log(loss=1.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["shown"] for line in lines] == list(range(1, torn.count("seconds") + 2))


def test_an_end_that_is_reached_again_is_written_once(tmp_path: Path) -> None:
    with Progress(tmp_path, total=4) as bar:
        for _ in range(2):
            bar.advance(2)
            bar.log(validation_accuracy=0.5)
        bar.log(train_loss=1.0)
        bar.forget("validation_")
    assert [sorted(line.keys() - {"seconds"}) for line in read_metrics(tmp_path)] == [
        ["shown", "validation_accuracy"],
        ["shown", "train_loss"],
    ]


def test_events_that_cannot_be_written_are_one_error_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = threading.excepthook

    def fail(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(OSError, match=r"events\.out\.tfevents: cannot be written \(No space left"),
        Progress(tmp_path, total=100) as bar,
    ):
        monkeypatch.setattr(RecordWriter, "write", fail)
        for _ in range(100):
            bar.advance(1)
            bar.log(loss=1.0)
            time.sleep(0.01)
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is before


def test_a_clock_that_is_set_back_moves_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(tmp_path, total=2) as bar:
        bar.log(loss=1.0)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 1e6)
        monkeypatch.setattr("tqdm.std.time", time.time)
        bar.advance(1)
        bar.log(loss=1.0)
        assert 0 <= bar._bar.format_dict["elapsed"] < 60
    seconds = [line["seconds"] for line in read_metrics(tmp_path)]
    assert 0 <= seconds[0] <= seconds[1] < 60


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_can_tell_preemption_from_a_mistake(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt, match="saved") as error:
            interrupt.stop("8 images")
    assert isinstance(error.value, Preempted) == (number == signal.SIGTERM)
    assert getattr(error.value, "exit_status", 2) == (PREEMPTED if number == signal.SIGTERM else 2)


def _allocate() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def _allocate_on_a_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore")


def _allocate_in_numpy() -> None:
    import numpy as np

    np.empty(1 << 50, dtype=np.uint8)


@pytest.mark.parametrize("shortage", [_allocate, _allocate_on_a_device, _allocate_in_numpy])
def test_a_batch_without_memory_names_the_flag_to_lower(shortage: Callable[[], None]) -> None:
    @tell_shortage
    def train(_config: _Config) -> None:
        shortage()

    with pytest.raises(OSError, match=r"^--batch-size 48: memory is too short.*lower it") as error:
        train(_Config(48))
    assert "\n" not in str(error.value)


def test_other_errors_are_no_shortage() -> None:
    @tell_shortage
    def train(_config: _Config) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(_Config())


# Checkpoints.


def test_a_damaged_checkpoint_is_noticed_wherever_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any flipped bytes, those of a weight among them, are an error of one kind; and the previous one is taken."""
    for shown in (1, 2):
        save_checkpoint(tmp_path, {"shown": shown, "w": torch.rand(40), "names": {"a": [1.0, 2]}})
    whole, random, noticed = (tmp_path / NAME).read_bytes(), torch.Generator().manual_seed(0), 0
    for number in range(300):
        content = bytearray(whole)
        high = len(whole) if number % 2 else 900  # where the pickle is
        for place in torch.randint(60, high, (3,), generator=random).tolist():
            content[place] ^= int(torch.randint(1, 256, (1,), generator=random))
        (tmp_path / NAME).write_bytes(content[: number * 7] if number % 10 == 0 else content)
        state = load_checkpoint(tmp_path)
        assert state is not None
        if state["shown"] == 1:
            noticed += 1
        else:  # the bytes lay between the parts
            assert torch.equal(state["w"], torch.load(io.BytesIO(whole), weights_only=True)["w"])
            assert state["names"] == {"a": [1.0, 2]}
    assert noticed > 150 and "skipped an unreadable checkpoint" in capsys.readouterr().err


# Whole trainings.


def test_trials_find_what_a_careless_training_loses(tmp_path: Path) -> None:
    """A toy that writes in place leaves half a checkpoint, one that saves too little ends in other bits."""
    command = [sys.executable, str(ROOT / "tests" / "toy_training.py"), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["careful"] == []
    assert any(f"{NAME} is damaged" in problem for problem in found["careless"])
    assert any("did not resume" in problem for problem in found["careless"])
    assert found["forgetful"] == ["the checkpoint differs", "record.json differs"]


def test_damage_is_found(tmp_path: Path) -> None:
    for shown in (4, 8):
        save_checkpoint(tmp_path, {"shown": shown})
    (tmp_path / "metrics.jsonl").write_text('{"shown": 8}\n{"sho')
    (tmp_path / "config.json").write_text("{}")
    assert find_damage(tmp_path, [4, 8]) == []
    assert find_damage(tmp_path, [4, 8, 12]) == ["the checkpoint at 12 was written, the newest one there is at 8"]
    (tmp_path / "metrics.jsonl").write_text('{"sho\n{"shown": 8}\n')
    (tmp_path / "grid.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    (tmp_path / "unknown.bin").write_bytes(b"")
    assert find_damage(tmp_path, [4, 8]) == [f"{n} is damaged" for n in ("grid.png", "metrics.jsonl", "unknown.bin")]
    for path in (tmp_path / "grid.png", tmp_path / "metrics.jsonl", tmp_path / "unknown.bin"):
        path.unlink()
    (tmp_path / "checkpoint.previous.pt").unlink()
    assert find_damage(tmp_path, [4, 8]) == ["the previous checkpoint is gone"]
    assert not (tmp_path / FRESH).exists() and progress.METRICS == "metrics.jsonl"


def try_faults(run_script: RunScript, out: Path, *flags: object) -> dict[tuple[str, str], int]:
    """How often each fault was tried on each training, after all were survived."""
    done = run_script("try_faults.py", *flags, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["tables"]["faults"]
    assert all(row["tried"] == row["survived"] > 0 for row in rows)
    return {(row["training"], row["fault"]): row["tried"] for row in rows}


def test_kills_at_random_moments_lose_nothing(run_script: RunScript, tmp_path: Path) -> None:
    tried = try_faults(run_script, tmp_path / "record.json", "--kills", 4, "--groups", "random")
    assert tried == {(name, "SIGKILL at a random moment"): 2 for name in ("gan", "points")}


@pytest.mark.slow
def test_fifty_kills_and_all_other_faults_lose_nothing(run_script: RunScript, tmp_path: Path) -> None:
    tried = try_faults(run_script, tmp_path / "record.json", "--kills", 50)
    assert sum(count for (_, fault), count in tried.items() if "random" in fault) == 50
    for name in ("gan", "points"):
        assert len([fault for training, fault in tried if training == name]) >= 20
