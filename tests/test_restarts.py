"""What processes do differently that torchrun starts in place of others: they wait for the lock, and keep the run."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
from pathlib import Path

import pytest

from shared_attn.runtime import record_lock
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.folder_lock import REPLACED, lock_folder
from shared_attn.runtime.run_folder import open_run


@dataclasses.dataclass(frozen=True)
class _Config:
    batch_size: int = 64


class Clock:
    """Of seconds slept, and of attempts to lock a file that another process holds until a time."""

    def __init__(self, freed_at: float) -> None:
        self.now, self.freed_at = 0.0, freed_at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def lock(self, _file: int, _how: int) -> None:
        if self.now < self.freed_at:
            raise OSError(errno.EAGAIN, "held")


def try_lock(freed_at: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds until the folder is locked."""
    clock = Clock(freed_at)
    monkeypatch.setattr(record_lock, "time", clock)
    monkeypatch.setattr(fcntl, "lockf", clock.lock)
    with lock_folder(folder):
        return clock.now


@pytest.mark.parametrize("name, value", [("TORCHELASTIC_RESTART_COUNT", "1"), ("GROUP_WORLD_SIZE", "2")])
def test_a_process_waits_for_the_lock_of_one_that_it_replaces(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="is training in it"):
        try_lock(3.0, tmp_path, monkeypatch)
    monkeypatch.setenv(name, value)
    assert 3.0 <= try_lock(3.0, tmp_path, monkeypatch) < 4.0
    with pytest.raises(ValueError, match="is training in it"):
        try_lock(REPLACED + 1, tmp_path, monkeypatch)


def test_only_the_first_start_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run(tmp_path, _Config(), fresh=True)
    save_checkpoint(tmp_path, {"shown": 1})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    open_run(tmp_path, _Config(), fresh=True)
    assert load_checkpoint(tmp_path) == {"shown": 1}
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    open_run(tmp_path, _Config(), fresh=True)
    assert load_checkpoint(tmp_path) is None
