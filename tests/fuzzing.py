"""Feeds every reader with spoilt files: mutations of valid ones, at random or guided by coverage (atheris).

A reader may return, or refuse in one line; anything else is found: another exception, words that do not fit on a line
or do not name the file, more than HANG seconds of a processor, more than MEMORY bytes on top of what the process had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mutations import LONGEST, mutate

HANG = 2.0  # seconds of a processor
STUCK = 60.0  # seconds until a reader that does not come back is ended
MEMORY = 2**30
SHARED_MEMORY = Path("/dev/shm")
WATCHED = (
    "gan",
    "pointcloud",
    "shared_attn",
    "trimesh",
    "zipfile.py",
    "tarfile.py",
    "PIL",
    "json",
    "h5py",
    "_format_impl.py",
)
COUNTERS = 2**14
REFUSALS = (ValueError, OSError)


@dataclass
class Tally:
    """What became of the inputs of one reader. found: kind -> the file that keeps an input of that kind."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    hangs: int = 0
    most_mb: float = 0.0
    seconds: float = 0.0
    found: dict[str, str] = field(default_factory=dict)


class Trial:
    """One reader, its tally, and the place in memory where its inputs are written."""

    def __init__(self, name: str, keep: Path | None, work: Path) -> None:
        from reader_table import READERS

        self.reader, self.tally, self.keep = READERS[name], Tally(name), keep
        self.path = work / "f" / self.reader.name
        self.path.parent.mkdir(parents=True)
        self.watch: Callable[..., Any] | None = None
        self._before: int | None = None

    def attempt(self, content: bytes) -> str | None:
        """Gives the reader an input; returns what was found, None for a return or a clear refusal."""
        self.path.write_bytes(content)
        if self._before is None:  # the first input is a valid one: imports and caches are not its memory
            with contextlib.suppress(*REFUSALS):
                self._read()
            self._before = _peak()
        tally, problem, begun = self.tally, None, _processor_seconds()
        try:
            self._read()
            tally.accepted += 1
        except REFUSALS as error:
            tally.refused += 1
            if "\n" in str(error) or str(self.path.parents[1]) not in str(error):
                problem = f"unclear {_place(error)}"
        except BaseException as error:
            problem = _place(error)
        took, peak = _processor_seconds() - begun, _peak() - self._before
        tally.inputs += 1
        tally.seconds += took
        tally.most_mb = max(tally.most_mb, peak / 2**20)
        if problem is None and peak > MEMORY:
            problem, self._before = f"memory: {peak / 2**20:.0f} MB", self._before + peak
        tally.crashes += problem is not None
        if took > HANG:
            problem = f"hang: {took:.1f} s"
            tally.hangs += 1
        if problem is not None:
            self._keep(problem, content)
        return problem

    def _read(self) -> None:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            sys.settrace(self.watch)
            try:
                self.reader.read(self.path)
            finally:
                sys.settrace(None)

    def _keep(self, problem: str, content: bytes) -> None:
        kind = problem.partition(":")[0] if problem.startswith(("hang", "memory")) else problem
        if kind in self.tally.found or len(self.tally.found) >= 50:
            return
        kept = ""
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(content).hexdigest()[:12]
            path = self.keep / f"{self.tally.reader.replace(' ', '-')}-{digest}-{Path(self.reader.name).name}"
            path.write_bytes(content)
            kept = str(path)
        self.tally.found[kind] = kept


def _place(error: BaseException) -> str:
    """What was raised and where, which is the same for many inputs."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"


def try_at_random(name: str, inputs: int, *, seed: int = 0, keep: Path | None = None) -> Tally:
    """So many mutations of a reader's valid files, drawn from the seed."""
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as work:
        trial, draw = Trial(name, keep, Path(work)), random.Random(seed)
        pool = trial.reader.seeds()
        for content in pool:
            trial.attempt(content)
        while trial.tally.inputs < inputs:
            content = draw.choice(pool)
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                content = mutate(content, draw)
            trial.attempt(content)
        return trial.tally


def _processor_seconds() -> float:
    """Of this process and those it waited for; other processes on the machine do not count."""
    return sum(os.times()[:4])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz(
    names: Sequence[str],
    *,
    inputs: int = 10**9,
    seconds: float = math.inf,
    seed: int = 0,
    keep: Path,
    tell: Callable[[Tally], None] = lambda _tally: None,
) -> list[Tally]:
    """Guided runs, each reader in a process of its own, until either limit.

    Args:
        names: of READERS, which say how the limits are shared out among them; none: all.
        keep: the folder of what was found.
        tell: called with each reader's tally.

    Raises:
        ImportError: atheris is not installed. ValueError: there is no such reader.
    """
    import atheris  # noqa: F401, before any work
    from reader_table import READERS

    if unknown := [name for name in names if name not in READERS]:
        raise ValueError(f"--readers {unknown[0]}: expected some of {', '.join(READERS)}")
    names = names or list(READERS)
    total, tallies = sum(READERS[name].share for name in names), []
    for name in names:
        share = READERS[name].share / total
        tallies.append(_supervise(name, max(1, math.ceil(inputs * share)), seconds * share, seed, keep))
        tell(tallies[-1])
    return tallies


def print_tally(tally: Tally) -> None:
    counts = f"{tally.inputs:,} inputs, {tally.refused:,} refused, {tally.accepted:,} accepted, {tally.crashes} crashes"
    print(f"{tally.reader}: {counts}, {tally.hangs} hangs, {tally.most_mb:.0f} MB more at most", flush=True)


def _supervise(name: str, inputs: int, seconds: float, seed: int, keep: Path) -> Tally:
    """Runs `try_guided` until the inputs are done: a process that died or is stuck is a crash or a hang, and the next
    one goes on with another seed."""
    whole, end = Tally(name), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        while whole.inputs < inputs and time.monotonic() < end:
            report, work = Path(folder, f"{seed}.json"), Path(folder, str(seed))
            work.mkdir()
            child = os.fork()
            if child == 0:
                try_guided(name, inputs - whole.inputs, end, seed, keep, report, work)
            ended = _wait(child, report)
            part = Tally(**json.loads(report.read_text())) if report.exists() else Tally(name)
            if ended:
                part.inputs += 1
                part.hangs += ended == "stuck"
                part.crashes += ended != "stuck"
                part.found[ended] = _keep_last(name, work, keep)
            _add(whole, part)
            seed += 1
    return whole


def _wait(child: int, report: Path) -> str:
    """What ended a process early; "" where it came to its end."""
    begun = time.time()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "" if status == 0 else f"the process died ({os.waitstatus_to_exitcode(status)})"
        if time.time() - max(begun, report.stat().st_mtime if report.exists() else 0) > STUCK:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "stuck"
        time.sleep(0.02)


def _keep_last(name: str, work: Path, keep: Path) -> str:
    """The input that a dead process was at."""
    trial = Trial(name, keep, work / "after")
    last = next(iter(sorted(work.glob(f"f/{trial.reader.name}"))), None)
    if last is None:
        return ""
    trial._keep("the process died", last.read_bytes())
    return trial.tally.found["the process died"]


def _add(whole: Tally, part: Tally) -> None:
    for key, value in asdict(part).items():
        if key == "found":
            whole.found |= value
        elif key == "most_mb":
            whole.most_mb = max(whole.most_mb, value)
        elif key != "reader":
            setattr(whole, key, getattr(whole, key) + value)


def try_guided(name: str, inputs: int, end: float, seed: int, keep: Path, report: Path, work: Path) -> NoReturn:
    """Inputs that atheris derives from the valid files, so many or until the clock is at `end`; writes the tally as it
    goes, and ends the process."""
    import atheris

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    trial, told = Trial(name, keep, work), 0.0
    corpus = work / "corpus"
    corpus.mkdir()
    for number, content in enumerate(trial.reader.seeds()):
        trial.attempt(content)
        (corpus / str(number)).write_bytes(content)

    def tell() -> None:
        part = report.with_suffix(".part")
        part.write_text(json.dumps(asdict(trial.tally)))
        part.replace(report)

    def attempt(content: bytes) -> None:
        nonlocal told
        trial.attempt(content)
        done = trial.tally.inputs >= inputs or time.monotonic() > end
        if done or time.monotonic() - told > 0.5:
            told = time.monotonic()
            tell()
        if done:
            os._exit(0)

    trial.watch = _report_lines()

    def change(content: bytes, longest: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.5:  # what is found is mostly cut and broken: back to what is whole
            content = draw.choice(trial.reader.seeds())
        return (mutate(content, draw) if draw.random() < 0.7 else atheris.Mutate(content, longest))[:longest]

    flags = [
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        "-rss_limit_mb=0",
        "-timeout=600",
        f"-artifact_prefix={work}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], attempt, custom_mutator=change)
    atheris.Fuzz()
    os._exit(1)  # it does not return


def _report_lines() -> Callable[..., Any]:
    """What sys.settrace takes, telling atheris of every line that runs in the WATCHED files.

    atheris' own way is to rewrite functions. On Python 3.11 a rewritten `with` swallows exceptions.
    """
    import atheris

    counters = [atheris._reserve_counter() for _ in range(COUNTERS)]
    lines: dict[tuple[Any, int], int] = {}
    watched: dict[Any, bool] = {}

    def line(frame: Any, event: str, _argument: Any) -> Any:
        if event == "line":
            place = lines.setdefault((frame.f_code, frame.f_lineno), len(lines))
            atheris._trace_branch(counters[place % COUNTERS])
        return line

    def call(frame: Any, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code not in watched:
            watched[code] = any(part in WATCHED for part in Path(code.co_filename).parts)
        return line if watched[code] else None

    return call


def _memory_folder() -> Path | None:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
