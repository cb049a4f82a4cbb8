"""One function over many files of a source: in this process or in several, with progress, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from pointcloud.releases.file_source import FileSource

Task = TypeVar("Task")
Result = TypeVar("Result")
TASKS_A_WORKER = 64  # fewer do not pay for starting a process that imports torch


def convert(
    source: FileSource, work: Callable[[FileSource, Task], Result], tasks: Sequence[Task], *, workers: int, label: str
) -> list[Result]:
    """[work(source, task) for task in tasks].

    Args:
        work: picklable (a function of a module, or a functools.partial of one) where there are several workers.
        workers: processes; 1: this one; 0: as many as there are cores, fewer where there are few tasks.
        label: of the progress bar.

    Raises:
        what `work` raises; OSError where a worker process dies.
    """
    from tqdm import tqdm

    count = min(workers, len(tasks)) if workers else min(count_cores(), len(tasks) // TASKS_A_WORKER)
    if count <= 1:
        return [work(source, task) for task in tqdm(tasks, desc=label, unit="shape")]
    # Not forked: a fork of a process whose numerical libraries run threads may hang.
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(source.path, work)
    )
    try:
        results = pool.map(_run, tasks, chunksize=max(1, min(16, len(tasks) // (4 * count))))
        return list(tqdm(results, total=len(tasks), desc=f"{label}, {count} processes", unit="shape"))
    except BrokenProcessPool as error:
        raise OSError(
            f"{source.path}: a worker process died (memory may be short); --workers 1 does without them"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def count_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_worker: tuple[FileSource, Callable[[FileSource, Any], Any]] | None = None


def _start_worker(path: Path, work: Callable[[FileSource, Any], Any]) -> None:
    global _worker  # noqa: PLW0603, each worker process opens the source once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which stops the pool
    _worker = (FileSource(path), work)


def _run(task: Any) -> Any:
    assert _worker is not None
    source, work = _worker
    return work(source, task)
