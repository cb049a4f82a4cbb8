"""A training in a forked process, so that fifty of them import torch once; what it saved, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared_attn.runtime import checkpoint

Job = Callable[[Path], None]
Fault = Callable[[], None]
TIMEOUT = 120.0
TICK = 0.002


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    Attributes:
        status: the exit status, or the signal that ended it, negative.
        told: what it wrote on standard error and standard output.
        saved: the clocks of the checkpoints it had written, in order; a kill cuts nothing off.
        seconds: wall time.
    """

    status: int
    told: str
    saved: list[int]
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status in (-signal.SIGKILL, -signal.SIGXFSZ)

    @property
    def errors(self) -> list[str]:
        """The lines that tell a mistake."""
        return [line for line in self.told.replace("\r", "\n").splitlines() if line.startswith("error: ")]


class Training:
    """A job in a forked process.

    Args:
        job: trains in the folder it is given, and returns or raises SystemExit.
        folder: where to train.
        fault: called in the process before the job; arranges for what is to happen.
    """

    def __init__(self, job: Job, folder: Path, fault: Fault | None = None):
        sys.stdout.flush()
        sys.stderr.flush()
        (self._told, told), (self._saved, saved) = os.pipe(), os.pipe()
        self._started, self._parts = time.monotonic(), {self._told: b"", self._saved: b""}
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._told)
            os.close(self._saved)
            _train(job, folder, fault, told, saved)
        for mine, other in ((self._told, told), (self._saved, saved)):
            os.close(other)
            os.set_blocking(mine, False)

    def wait(self, *, kill_after: float | None = None) -> Ended:
        """Waits for the end; kills the process after so many seconds."""
        deadline = self._started + (TIMEOUT if kill_after is None else kill_after)
        while True:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() >= deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(TICK)
        saved = self.saved()
        told = self._parts[self._told].decode(errors="replace")
        os.close(self._told)
        os.close(self._saved)
        return Ended(os.waitstatus_to_exitcode(status), told, saved, time.monotonic() - self._started)

    def wait_for_saves(self, count: int) -> None:
        """Returns once so many checkpoints are written."""
        deadline = time.monotonic() + TIMEOUT
        while len(self.saved()) < count and time.monotonic() < deadline:
            time.sleep(TICK)

    def saved(self) -> list[int]:
        """The clocks of the checkpoints written so far."""
        self._read()
        return [int(line) for line in self._parts[self._saved].decode().splitlines()]

    def _read(self) -> None:
        for pipe in self._parts:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(pipe, 1 << 16):
                    self._parts[pipe] += part


def run(job: Job, folder: Path, fault: Fault | None = None, *, kill_after: float | None = None) -> Ended:
    """A training from its start to its end; see :class:`Training`."""
    return Training(job, folder, fault).wait(kill_after=kill_after)


def _train(job: Job, folder: Path, fault: Fault | None, told: int, saved: int) -> None:
    """In the forked process, which never returns from here."""
    status = 1
    try:
        os.dup2(told, 1)
        os.dup2(told, 2)
        announce_saves(lambda shown: os.write(saved, f"{shown}\n".encode()))
        if fault is not None:
            fault()
        job(folder)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def announce_saves(tell: Callable[[int], object]) -> None:
    """Lets this process tell the clock of each checkpoint once it stands under its name and can be read."""
    replace = os.replace

    def telling(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == checkpoint.NAME:
            state = checkpoint.load_checkpoint(Path(target).parent)
            assert state is not None, "it stands there"
            tell(state["shown"])

    os.replace = telling  # type: ignore[assignment]
