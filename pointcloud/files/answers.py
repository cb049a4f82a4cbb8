"""How the command lines tell their answers about files: as a table or one JSON list while the work goes on, a progress
bar, and at the end what could not be read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from pointcloud.files.user_files import UserFile
from shared_attn.runtime.messages import one_line

BAR_FROM = 8  # files: fewer are done before a bar helps
WIDEST = 60  # characters of the column of files


class Answers:
    """Context manager: `row` for a file that was done, `skip` for one that could not be read.

    Answers go to standard output as they come, errors and progress to standard error. An interrupted list is closed,
    so that what was printed is whole. Ctrl-C interrupts at the next answer at the latest: Python drops an exception
    that a signal raises while it clears away an object.

    Attributes:
        skipped: the errors of the files that could not be read, one line each.
    """

    def __init__(self, files: Sequence[UserFile], columns: Mapping[str, int], *, as_json: bool = False) -> None:
        """columns: the table's, with their widths; before them stands the file's."""
        from tqdm import tqdm

        self.skipped: list[str] = []
        self._done, self._total, self._as_json = 0, len(files), as_json
        longest = max((len(str(file.path)) for file in files), default=0)
        self._widths = [min(longest, WIDEST), *columns.values()]
        self._interrupted = False
        self._previous: Any = None
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=len(files), unit="file", disable=len(files) < BAR_FROM, dynamic_ncols=True,
            mininterval=0.1 if terminal else 10, file=sys.stderr,
        )  # fmt: skip
        if not as_json:
            self._print(self._line(["file", *columns]))

    def row(self, file: UserFile, cells: Sequence[str], answer: Mapping[str, Any]) -> None:
        """A file's cells in the table, or its JSON object."""
        if self._as_json:
            self._print_object(answer)
        else:
            self._print(self._line([str(file.path), *cells]))
        self._count()

    def skip(self, file: UserFile, error: Exception) -> None:
        self.skipped.append(one_line(error))
        if self._as_json:
            self._print_object({"file": str(file.path), "error": self.skipped[-1]})
        self._count()

    def _count(self) -> None:
        self._done += 1
        self._bar.update()
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()

    def _print_object(self, answer: Mapping[str, Any]) -> None:
        text = "\n".join("  " + line for line in json.dumps(answer, indent=2).splitlines())
        self._print(("[\n" if self._done == 0 else ",\n") + text, end="")

    def _print(self, text: str, end: str = "\n") -> None:
        """At once, so that an interrupt or a kill loses nothing; above the bar where both are on one terminal."""
        with self._bar.external_write_mode(file=sys.stdout) if sys.stdout.isatty() else contextlib.nullcontext():
            try:
                print(text, end=end, flush=True)
            except OSError as error:
                _give_up_output()
                raise OSError(f"standard output: cannot be written ({error.strerror})") from error

    def __enter__(self) -> Answers:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        self._bar.close()
        if self._as_json and not isinstance(error, OSError):
            self._print("\n]" if self._done else "[]")
        for line in self.skipped:
            print(f"error: {line}", file=sys.stderr)
        if len(self.skipped) > 1:
            print(f"{len(self.skipped)} of {self._done} files could not be read", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted after {self._done} of {self._total} files") from error


def _give_up_output() -> None:
    """Sends what Python would still write at its end nowhere, or it would complain a second time."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_axes(chosen: Sequence[tuple[str, str]]) -> str:
    """Which axis was taken to be up in which (file, axis): one line."""
    turned = [file for file, axis in chosen if axis == "y"]
    listed = ", ".join(turned[:8]) + (f" and {len(turned) - 8} more" if len(turned) > 8 else "")
    return f"up axis: z in {len(chosen) - len(turned)}, y in {len(turned)} files" + (f" ({listed})" if turned else "")
