"""Ctrl-C (and SIGTERM) stop a training at the end of a step, after it has been saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class Interrupt:
    """Context manager: the first SIGINT or SIGTERM sets ``requested``, a second SIGINT raises at once.

    >>> with Interrupt() as interrupt:
    ...     interrupt.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice: stopped at once; the last checkpoint stands")
        self.requested = True

    def stop(self, where: str) -> NoReturn:
        """Ends the run after the caller has saved it; ``where`` says how far it came, e.g. "12,800 images"."""
        raise KeyboardInterrupt(f"interrupted at {where}; saved; run the same command again to resume")
