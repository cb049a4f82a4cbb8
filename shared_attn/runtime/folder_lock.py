"""One training a folder: a lock that a second training meets, and that vanishes with its process, however that ends.

Readers of a run (sampling, evaluation, galleries) never ask for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import functools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from shared_attn.runtime.record_lock import lock_file

NAME = ".lock"
# Seconds in which a process on another machine that this one replaces has ended: torchrun kills it after 30.
REPLACED = 60.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Locks are taken by open_run, deep in a training, and freed when the training returns or raises.
_training: contextvars.ContextVar[contextlib.ExitStack | None] = contextvars.ContextVar("training", default=None)
_held: set[Path] = set()  # by this process, which its own record locks do not stop


def one_in_a_folder(train: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A training that has the folders it opens (:func:`shared_attn.runtime.run_folder.open_run`) for itself."""

    @functools.wraps(train)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with contextlib.ExitStack() as stack:
            token = _training.set(stack)
            try:
                return train(*arguments, **keywords)
            finally:
                _training.reset(token)

    return call


def claim_folder(folder: Path) -> None:
    """Within a training (see :func:`one_in_a_folder`) locks ``folder`` until it ends; elsewhere does nothing.

    Raises:
        ValueError: Another training has the folder; the line names its process and machine.
        OSError: The folder cannot be written.
    """
    stack = _training.get()
    if stack is not None:
        stack.enter_context(lock_folder(folder))


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of an existing ``folder``; see :func:`claim_folder`.

    On a file system without locks it warns, and holds nothing.
    """
    key = folder.resolve()
    if key in _held:
        raise ValueError(_refusal(folder, "this process"))
    try:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise type(error)(f"--out {folder}: cannot be written ({error.strerror})") from error
    try:
        if _lock(handle, folder):
            _introduce(handle)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Whether the open file is locked now; False where that cannot be."""
    try:
        reason = lock_file(handle, REPLACED if may_replace() else 0.0)
    except BlockingIOError as error:
        raise ValueError(_refusal(folder, _describe_holder(handle))) from error
    if reason is None:
        return True
    print(
        f"warning: --out {folder}: its file system has no locks ({reason}); see that no other training runs there",
        file=sys.stderr,
    )
    return False


def may_replace() -> bool:
    """Whether torchrun may have started this process for one that it is still ending.

    It starts the processes of a machine anew once they are gone; those of other machines end by themselves.
    """
    return is_restarted() or int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1


def is_restarted() -> bool:
    """Whether torchrun has started this process after another had failed (its --max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _introduce(handle: int) -> None:
    """Writes who holds the lock; for people, so a full disk does not matter."""
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}) + "\n"
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())


def _describe_holder(handle: int) -> str:
    try:
        said = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(said['pid'])} on {str(said['host'])[:100]}, since {str(said['since'])[:40]},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _refusal(folder: Path, who: str) -> str:
    return f"--out {folder}: {who} is training in it; give another --out, or wait until that training has ended"
