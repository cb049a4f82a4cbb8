"""Progress of a long job: a bar with rate and time left, metrics.jsonl, and TensorBoard events."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shared_attn.runtime.files import atomic_write, naming

if TYPE_CHECKING:
    from torch import Tensor

METRICS = "metrics.jsonl"


class Progress:
    """Context manager for a job whose clock is items shown (images, clouds).

    On resume (``done`` > 0) the lines of metrics.jsonl beyond ``done`` are cut off: the run writes them again.

    Attributes:
        shown: Items shown so far.
        seconds: Time spent so far, over all resumed pieces of the run.
    """

    def __init__(
        self, folder: Path | str, *, total: int, done: int = 0, unit: str = "img", description: str = ""
    ) -> None:
        from tqdm import tqdm

        self.folder, self.shown = Path(folder), done
        lines = _read_lines(self.folder / METRICS)
        kept = [line for line in lines if line["shown"] <= done] if done else []
        if (self.folder / METRICS).exists():  # its first line may be torn, too
            self._rewrite(kept)
        self._before = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        self._start = time.monotonic()
        self._live: dict[str, str] = {}
        self._events = _Events(self.folder, purge_step=done + 1 if done else None)
        self._bar = tqdm(total=total, initial=done, unit=unit, unit_scale=True, desc=description, dynamic_ncols=True)
        if hasattr(self._bar, "_time"):  # the wall clock, which may jump: set back, it would stop the bar
            self._bar._time = time.monotonic
            self._bar.start_t = self._bar.last_print_t = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def advance(self, count: int, **live: float) -> None:
        """Moves the clock by ``count`` items; the ``live`` values stand behind the bar."""
        self.shown += count
        if live:
            self._live.update({name: f"{value:.3g}" for name, value in live.items()})
            self._bar.set_postfix(self._live, refresh=False)
        self._bar.update(count)

    def log(self, **metrics: float) -> None:
        """Writes one line of metrics at the present clock; a value that is not finite is written as null.

        Raises:
            OSError: The line, or TensorBoard's events, cannot be written (a full disk); names the file.
        """
        line: dict[str, Any] = {"shown": self.shown, "seconds": round(self.seconds, 2)}
        line.update({name: float(value) if math.isfinite(value) else None for name, value in metrics.items()})
        with naming(self.folder / METRICS), open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in metrics.items():
            self._events.call("add_scalar", name, value, self.shown)

    def forget(self, *prefixes: str) -> None:
        """Removes the present clock's lines that hold a metric of such a name: a run that has ended ends once more."""
        lines = _read_lines(self.folder / METRICS)
        kept = [line for line in lines if line["shown"] != self.shown or not any(n.startswith(prefixes) for n in line)]
        if len(kept) < len(lines):
            self._rewrite(kept)

    def image(self, tag: str, image: Tensor) -> None:
        """Shows an image (3, H, W), uint8, in TensorBoard."""
        self._events.call("add_image", tag, image, self.shown)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        with atomic_write(self.folder / METRICS, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._events.close(quietly=error is not None)


class _Events:
    """TensorBoard's writer, which writes by a thread of its own: what fails there is raised here, and names the file.

    The thread's end would otherwise be told by a traceback.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._notice
        try:
            with naming(folder / "events.out.tfevents"):
                self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except BaseException:
            threading.excepthook = self._hook
            raise

    def call(self, method: str, *arguments: Any) -> None:
        with naming(self.folder / "events.out.tfevents"):
            getattr(self._writer, method)(*arguments)

    def close(self, *, quietly: bool) -> None:
        """Writes what is waiting; `quietly` where an error is on its way that matters more."""
        try:
            self.call("close")
        except OSError:
            if not quietly:
                raise
        finally:
            threading.excepthook = self._hook

    def _notice(self, failed: threading.ExceptHookArgs) -> None:
        tensorboards = type(failed.thread).__module__.startswith("tensorboard")
        if not (tensorboards and isinstance(failed.exc_value, OSError)):  # the writer raises that itself, when called
            self._hook(failed)


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line torn by a kill is left out."""
    return _read_lines(Path(folder) / METRICS)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
