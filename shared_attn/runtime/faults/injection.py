"""Faults that a training process arranges for itself before it starts: what a disk, a scheduler or a clock may do.

Each function returns a fault: a function to be called in a process that does nothing else (see ``processes``), for it
changes Python's own functions there.
"""

from __future__ import annotations

import builtins
import errno
import fnmatch
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared_attn.runtime import checkpoint
from shared_attn.runtime.faults.processes import Fault, announce_saves


def die() -> None:
    """Ends this process at once, as a lack of memory, a power cut or an impatient scheduler does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_rename(name: str, occurrence: int, *, after: bool = False) -> Fault:
    """SIGKILL just before, or after, the so-many-th time that a file is renamed to `name` (a pattern)."""

    def fault() -> None:
        replace, seen = os.replace, 0

        def striking(source: Path, target: Path) -> None:
            nonlocal seen
            seen += fnmatch.fnmatch(Path(target).name, name)
            strikes = seen == occurrence and fnmatch.fnmatch(Path(target).name, name)
            if strikes and not after:
                die()
            replace(source, target)
            if strikes:
                die()

        os.replace = striking  # type: ignore[assignment]

    return fault


def kill_while_writing(name: str, occurrence: int, size: int) -> Fault:
    """A kill by the kernel in the middle of a write, when `size` bytes of a file are written.

    Args:
        name: of the opened file, a pattern; a file that is written beside its place is called .NAME.PID.tmp.
        occurrence: strikes the so-many-th such file that is opened to be written.
        size: bytes that are written, beyond what the file holds when it is opened.
    """

    def fault() -> None:
        open_file, seen = builtins.open, 0

        def striking(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            nonlocal seen
            opened = open_file(file, mode, *arguments, **keywords)
            if isinstance(file, str | Path) and mode[0] in "wa" and fnmatch.fnmatch(Path(file).name, name):
                seen += 1
                if seen == occurrence:
                    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                    _limit(resource.RLIMIT_CORE, 0)
                    _limit(resource.RLIMIT_FSIZE, os.path.getsize(file) + size)
            return opened

        builtins.open = striking

    return fault


def limit_files(size: int) -> Fault:
    """No file grows beyond `size` bytes: writes fail as on a full disk, with another number of the error."""
    return lambda: _limit(resource.RLIMIT_FSIZE, size)


def refuse_writing(folder: Path, saves: int) -> Fault:
    """The folder is read-only, once so many checkpoints are written; simulated, for root may write anywhere."""

    def fault() -> None:
        open_file, open_handle = builtins.open, os.open

        def refuse(file: Any) -> None:
            if isinstance(file, str | Path) and folder in (Path(file), *Path(file).parents):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

        def opening(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if mode[0] in "wa":
                refuse(file)
            return open_file(file, mode, *arguments, **keywords)

        def opening_handle(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                refuse(path)
            return open_handle(path, flags, *arguments, **keywords)

        def begin() -> None:
            builtins.open, os.open = opening, opening_handle

        after_saves(saves, begin)()

    return fault


def after_saves(count: int, action: Callable[[], None]) -> Fault:
    """An action once so many checkpoints are written; 0: before anything."""

    def fault() -> None:
        seen = 0

        def notice(_shown: int) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                action()

        if count:
            announce_saves(notice)
        else:
            action()

    return fault


def lose(path: Path, saves: int) -> Fault:
    """A file or folder of data vanishes."""
    return after_saves(saves, lambda: shutil.rmtree(path) if path.is_dir() else path.unlink())


def run_out_of_memory(saves: int) -> Fault:
    """The next layer asks torch's allocator for a petabyte."""

    def hook(*_arguments: Any) -> None:
        torch.empty(1 << 50, dtype=torch.uint8)

    def begin() -> None:
        torch.nn.modules.module.register_module_forward_pre_hook(hook)

    return after_saves(saves, begin)


def set_clock_back(saves: int, seconds: float = 86400.0) -> Fault:
    """The wall clock jumps, for all that ask it through Python."""
    now = time.time

    def begin() -> None:
        import tqdm.std

        time.time = lambda: now() - seconds
        tqdm.std.time = time.time

    return after_saves(saves, begin)


class Disk:
    """Context manager: a file system in memory of a given size at `folder`; only root may, and not in every container.

    Raises:
        PermissionError: it cannot be mounted.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size

    def __enter__(self) -> Disk:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._call("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder))
        return self

    def grow(self, size: int) -> None:
        self._call("mount", "-o", f"remount,size={size}", str(self.folder))

    def __exit__(self, *_error: object) -> None:
        self._call("umount", "-l", str(self.folder))

    @staticmethod
    def _call(*command: str) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise PermissionError(f"{command[0]}: {error.strerror}") from error
        if done.returncode:
            raise PermissionError(done.stderr.strip())


def _limit(kind: int, size: int) -> None:
    resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))


CHECKPOINT = f".{Path(checkpoint.NAME).stem}.new.pt.*.tmp"  # while it is written
