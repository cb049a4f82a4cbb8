"""Ctrl-C and SIGTERM stop a training at the end of a step, after it has been saved.

Exit statuses: Ctrl-C (SIGINT) is a person's, and ends with 2 as all that a person should look at. SIGTERM is how a
scheduler takes a machine back, and ends with PREEMPTED, so that a job's script can tell "saved, start me again" from a
wrong flag. It is not 143, the status of a process that SIGTERM has killed: that one has saved nothing.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again


class Preempted(KeyboardInterrupt):
    """SIGTERM: the run is saved. Scripts end with the status ``exit_status``."""

    exit_status = PREEMPTED


class Interrupt:
    """Context manager: the first SIGINT or SIGTERM sets ``requested``, a second SIGINT raises at once.

    >>> with Interrupt() as interrupt:
    ...     interrupt.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._terminated = False
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
        self._terminated |= number == signal.SIGTERM

    def stop(self, where: str, *, saved: bool = True) -> NoReturn:
        """Ends the run, which the caller has ``saved``; ``where`` says how far it came, e.g. "12,800 images".

        Raises:
            Preempted: after SIGTERM. KeyboardInterrupt: after SIGINT.
        """
        kind = Preempted if self._terminated else KeyboardInterrupt
        state = "saved; run the same command again to resume" if saved else "run the same command again to start over"
        raise kind(f"interrupted at {where}; {state}")
